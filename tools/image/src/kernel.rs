//! From a Debian kernel package to a raw arm64 `Image` and a small tree of modules.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::apt::{self, Apt, Request};
use crate::cache::{Cache, Key, Lock};
use crate::cmd;
use crate::modules::{self, Modules};
use crate::zimg;

/// What root needs for the machine's devices, for the control device and for tests. `?`: only where it
/// exists.
const ROOT_MODULES: &[&str] = &[
    "uio",
    "uio_pci_generic",
    "virtio_mmio",
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_console?",
    "virtio_rng?",
    "virtio_scsi?",
    "sd_mod?",
    "nvme",
    "e1000e?",
    "ext4",
    "crc32c_generic?",
    "crc32c?",
    "overlay",
    "squashfs",
    "loop",
    "dm_mod",
    "dm_flakey?",
    "dm_delay?",
    "dm_snapshot",
    "null_blk?",
    "brd?",
    "nbd?",
    "tun",
    "bridge",
    "8021q?",
    "dummy?",
    // Filters and NAT of ringd's bridge.
    "nf_tables",
    "nft_chain_nat",
    "nft_ct",
    "nft_fib_inet",
    "nft_masq",
    "nft_nat",
    "nft_redir?",
    "nft_meta_bridge?",
    "rtc_pl031",
    "gpio_keys?",
    "evdev?",
];

/// What a guest needs to reach its root file system, its network, entropy device and consoles, and its power
/// key.
const GUEST_MODULES: &[&str] = &[
    "virtio_mmio",
    "virtio_blk",
    "virtio_net",
    "virtio_rng?",
    "8021q?",
    "virtio_console?",
    "gpio_keys?",
    "evdev?",
    "ext4",
    "crc32c_generic?",
    "crc32c?",
];

/// Debian's kernels that root and guests can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Flavour {
    /// `linux-image-cloud-arm64` 6.12 from backports.
    Cloud,
    /// `linux-image-arm64` 6.1.
    Generic,
}

impl Flavour {
    /// Returns the name of Debian's package.
    pub fn package(self) -> &'static str {
        match self {
            Self::Cloud => "linux-image-cloud-arm64",
            Self::Generic => "linux-image-arm64",
        }
    }

    /// Returns whether the package comes from backports.
    pub fn backports(self) -> bool {
        self == Self::Cloud
    }
}

impl fmt::Display for Flavour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cloud => "cloud",
            Self::Generic => "generic",
        })
    }
}

/// A kernel in the cache.
#[derive(Debug, Clone)]
pub struct Kernel {
    dir: PathBuf,
}

impl Kernel {
    /// Returns the kernel of `flavour`, downloaded and unpacked when it is not in the cache yet.
    ///
    /// # Errors
    /// The package cannot be had or is not what was expected.
    pub fn obtain(cache: &Cache, lock: &Lock, apt: &Apt, flavour: Flavour) -> Result<Self> {
        let package = flavour.package();
        let request = Request {
            packages: &[package],
            backports: flavour.backports(),
        };
        let debs = apt.packages(package, request, is_kernel)?;
        let key = Key::new(2).with(&debs).with(ROOT_MODULES).with(GUEST_MODULES);
        let dir = cache.publish(lock, &format!("kernel-{flavour}"), &key, |dir| {
            cmd::step(&format!("unpacking the kernel {package}"));
            let whole = dir.join("whole");
            fs::create_dir_all(&whole)?;
            apt::unpack(&debs, &whole, &["./usr/share"])?;
            build(&whole, dir)?;
            Ok(fs::remove_dir_all(&whole)?)
        })?;
        Ok(Self { dir })
    }

    /// Returns the path of the raw arm64 Image file.
    pub fn file(&self) -> PathBuf {
        self.dir.join("Image")
    }

    /// Returns a tree with `usr/lib/modules/<version>` for root.
    pub fn root_modules(&self) -> PathBuf {
        self.dir.join("root")
    }

    /// Returns a tree with `usr/lib/modules/<version>` for guests.
    pub fn guest_modules(&self) -> PathBuf {
        self.dir.join("guest")
    }
}

/// Accepts `linux-image-6.12.95+deb12-cloud-arm64`: the package with the kernel, not the one that points to
/// it.
fn is_kernel(name: &str) -> bool {
    name.strip_prefix("linux-image-")
        .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

fn build(whole: &Path, dir: &Path) -> Result<()> {
    let boot = whole.join("boot");
    let vmlinuz = only_entry(&boot, "vmlinuz-")?;
    let version = vmlinuz.trim_start_matches("vmlinuz-");
    let image = zimg::raw_image(fs::read(boot.join(&vmlinuz))?)?;
    fs::write(dir.join("Image"), image)?;
    let base = [whole.join("usr/lib/modules"), whole.join("lib/modules")]
        .into_iter()
        .find(|d| d.join(version).is_dir())
        .with_context(|| format!("the package has no modules for {version}"))?
        .join(version);
    let all = Modules::open(&base)?;
    copy(&all, &base, ROOT_MODULES, &dir.join("root"), version)?;
    copy(&all, &base, GUEST_MODULES, &dir.join("guest"), version)?;
    index(&dir.join("root"), version)
}

/// Makes kmod's index. `depmod` looks below `lib`, newer ones below `usr/lib`.
fn index(tree: &Path, version: &str) -> Result<()> {
    let lib = tree.join("lib");
    std::os::unix::fs::symlink("usr/lib", &lib).with_context(|| format!("cannot make {}", lib.display()))?;
    cmd::run(cmd::command("depmod").arg("-b").arg(tree).arg(version))?;
    Ok(fs::remove_file(lib)?)
}

fn copy(all: &Modules, base: &Path, wanted: &[&str], dest: &Path, version: &str) -> Result<()> {
    let to = dest.join("usr/lib/modules").join(version);
    fs::create_dir_all(&to)?;
    let mut modules_dep = String::new();
    for module in all.closure(wanted)? {
        let name = unpacked_name(base, &module.file)?;
        let path = to.join(&name);
        fs::create_dir_all(path.parent().context("module without a directory")?)?;
        fs::write(&path, modules::read(&module.file)?)?;
        modules_dep.push_str(&format!("{name}:"));
        // What is to be loaded first comes last, as depmod writes it.
        for need in module.needs.iter().rev() {
            modules_dep.push_str(&format!(" {}", unpacked_name(base, need)?));
        }
        modules_dep.push('\n');
    }
    fs::write(to.join("modules.dep"), modules_dep)?;
    for list in ["modules.builtin", "modules.builtin.modinfo", "modules.order"] {
        fs::copy(base.join(list), to.join(list)).with_context(|| format!("cannot copy {list}"))?;
    }
    Ok(())
}

/// Returns the path of a module below `base`, always as a `.ko`: they are stored unpacked, since neither an
/// initramfs nor busybox should have to know each compression.
fn unpacked_name(base: &Path, file: &Path) -> Result<String> {
    let inside = file
        .strip_prefix(base)?
        .to_str()
        .context("module name is not UTF-8")?;
    let (stem, _) = inside.rsplit_once(".ko").context("not a module")?;
    Ok(format!("{stem}.ko"))
}

/// Returns the name of the one entry of `dir` that begins with `prefix`.
fn only_entry(dir: &Path, prefix: &str) -> Result<String> {
    fs::read_dir(dir)?
        .flatten()
        .filter_map(|e| e.file_name().into_string().ok())
        .find(|n| n.starts_with(prefix))
        .with_context(|| format!("no {prefix}* in {}", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::is_kernel;

    #[test]
    fn tells_the_kernel_from_what_points_to_it() {
        assert!(is_kernel("linux-image-6.12.95+deb12-cloud-arm64"));
        assert!(!is_kernel("linux-image-cloud-arm64"));
        assert!(!is_kernel("linux-base"));
    }
}
