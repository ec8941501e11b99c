//! The directory tree that root and guests run from: Debian's own programs, a merged `/usr`, and links for
//! busybox.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use object::read::elf::{Dyn as _, ElfFile64, FileHeader as _};
use object::{Endianness, elf};

use crate::apt::{self, Apt, Deb, Request};
use crate::cache::{Cache, Key, Lock};
use crate::cmd;
use crate::engines;

/// What scripts may count on.
const PACKAGES: &[&str] = &[
    "busybox-static",
    "fio",
    "e2fsprogs",
    "util-linux",
    "util-linux-extra",
    "mount",
    "fdisk",
    "procps",
    "kmod",
    // The shell of scripts and basic tools: busybox's own run its applets in place of programs of the same
    // name.
    "dash",
    "coreutils",
    "bash",
    "dmsetup",
    "pciutils",
    // What ringd starts for networks of guests.
    "dnsmasq-base",
    "nftables",
    "passt",
    // What guests and tests do with a network.
    "socat",
    "iperf3",
    "dropbear-bin",
];

/// Libraries of fio's that it keeps ([`crate::engines`]).
const FIO_LIBRARIES: &[&str] = &["ld-linux-", "libaio.", "libc.", "libm.", "libnuma.", "libz."];

/// Packages that are depended on only by maintainer scripts and helper scripts which nothing here runs, or by
/// fio's other engines.
const NOT_NEEDED: &[&str] = &[
    "perl",
    "libperl",
    "python3",
    "libpython3",
    "dpkg",
    "debconf",
    "adduser",
    "passwd",
    "usrmerge",
    "libfile-",
    "tar",
    "libboost-",
    "libdaxctl",
    "libffi",
    "libfmt",
    "libgf",
    "libglusterfs",
    "libgnutls",
    "libibverbs",
    "libicu",
    "libnbd",
    "libndctl",
    "libnl-",
    "libp11-kit",
    "libpmem",
    "librados",
    "librbd",
    "librdmacm",
    "libsqlite3",
    "libtasn1",
    "libxml2",
];

/// Parts of packages that a machine without people does without.
const EXCLUDE: &[&str] = &[
    "./usr/share/doc",
    "./usr/share/man",
    "./usr/share/info",
    "./usr/share/locale",
    "./usr/share/lintian",
    "./usr/share/bash-completion",
    "./usr/share/bug",
    "./usr/lib/*/gconv",
    "./usr/lib/systemd",
    "./lib/systemd",
];

/// Small files in `/etc`.
const ETC: &[(&str, &str)] = &[
    (
        "passwd",
        "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    ),
    ("group", "root:x:0:\ndisk:x:6:\nnogroup:x:65534:\n"),
    ("hosts", "127.0.0.1 localhost\n"),
    ("shells", "/bin/sh\n/bin/bash\n"),
    ("dhcp", include_str!("../files/dhcp")),
    ("fstab", ""),
    ("ld.so.conf", "/usr/lib/aarch64-linux-gnu\n/usr/lib\n"),
    (
        "profile",
        "export PATH=/usr/local/bin:/usr/bin HOME=/root\nPS1='\\u@\\h:\\w\\$ '\n",
    ),
];

/// The tree in the cache, and what it was made from.
#[derive(Debug, Clone)]
pub struct Userland {
    /// The tree.
    pub dir: PathBuf,
}

impl Userland {
    /// Makes the tree when it is not in the cache yet.
    ///
    /// # Errors
    /// Packages cannot be had, or a program needs a library that none of them has.
    pub fn obtain(cache: &Cache, lock: &Lock, apt: &Apt) -> Result<Self> {
        let debs = apt.packages(
            "userland",
            Request {
                packages: PACKAGES,
                backports: false,
            },
            is_needed,
        )?;
        let key = Key::new(5)
            .with(&debs)
            .with(EXCLUDE)
            .with(ETC)
            .with(FIO_LIBRARIES);
        let dir = cache.publish(lock, "userland", &key, |dir| {
            cmd::step("unpacking Debian's arm64 programs");
            build(&debs, dir)
        })?;
        Ok(Self { dir })
    }

    /// Returns the static busybox, the only program of initramfs archives.
    pub fn busybox(&self) -> PathBuf {
        self.dir.join("usr/bin/busybox")
    }
}

fn is_needed(name: &str) -> bool {
    !NOT_NEEDED.iter().any(|prefix| name.starts_with(prefix))
}

fn build(debs: &[Deb], dir: &Path) -> Result<()> {
    for sub in [
        "usr/bin",
        "usr/lib",
        "etc",
        "dev",
        "proc",
        "sys",
        "run",
        "tmp",
        "root",
        "mnt/files",
        "srv",
        "var/tmp",
        "etc/dropbear",
    ] {
        fs::create_dir_all(dir.join(sub))?;
    }
    // One directory for programs: a path of one entry, and no program is hidden by another.
    for (link, target) in [
        ("bin", "usr/bin"),
        ("sbin", "usr/bin"),
        ("lib", "usr/lib"),
        ("usr/sbin", "bin"),
    ] {
        symlink(target, dir.join(link))?;
    }
    apt::unpack(debs, dir, EXCLUDE)?;
    link_applets(&dir.join("usr/bin"))?;
    trim_fio(&dir.join("usr/bin/fio"))?;
    for (name, text) in ETC {
        fs::write(dir.join("etc").join(name), text)?;
    }
    fs::set_permissions(dir.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    fs::set_permissions(dir.join("etc/dhcp"), fs::Permissions::from_mode(0o755))?;
    check_libraries(dir)
}

/// Leaves fio those libraries that what it does here needs.
fn trim_fio(path: &Path) -> Result<()> {
    let mut program = fs::read(path).context("no fio in the packages")?;
    let keep = |library: &str| FIO_LIBRARIES.iter().any(|kept| library.starts_with(kept));
    engines::keep_libraries(&mut program, keep).context("fio's libraries")?;
    // Not in place: the cache may have other links to the file.
    let permissions = fs::metadata(path)?.permissions();
    fs::remove_file(path)?;
    fs::write(path, program)?;
    Ok(fs::set_permissions(path, permissions)?)
}

/// Links every busybox applet that no package brings as a program of its own.
fn link_applets(bin: &Path) -> Result<()> {
    let busybox = fs::read(bin.join("busybox")).context("no busybox in the packages")?;
    for applet in applets(&busybox)? {
        let link = bin.join(&applet);
        if fs::symlink_metadata(&link).is_err() {
            symlink("busybox", &link).with_context(|| format!("cannot link {applet}"))?;
        }
    }
    Ok(())
}

/// Returns the names in busybox's table: sorted strings that begin with `[` and `[[`, ended by an empty one.
/// It cannot be asked, as it is a program of another architecture.
fn applets(busybox: &[u8]) -> Result<Vec<String>> {
    let start = busybox
        .windows(5)
        .position(|w| w == b"\0[\0[[")
        .context("busybox has no table of applets")?
        + 1;
    let names: Vec<String> = busybox
        .get(start..)
        .unwrap_or_default()
        .split(|&b| b == 0)
        .take_while(|n| !n.is_empty())
        .filter_map(|n| String::from_utf8(n.to_vec()).ok())
        .collect();
    if !["sh", "ls", "vi", "udhcpc"]
        .iter()
        .all(|n| names.iter().any(|a| a == n))
    {
        bail!("busybox's table of applets was not understood");
    }
    Ok(names)
}

/// Checks that every library that a program or library in the tree names is in the tree.
fn check_libraries(dir: &Path) -> Result<()> {
    let (mut present, mut needed) = (BTreeSet::new(), BTreeSet::new());
    scan(&dir.join("usr"), &mut present, &mut needed)?;
    let missing: Vec<_> = needed
        .iter()
        .filter(|(lib, _)| !present.contains(lib))
        .map(|(lib, by)| format!("{lib} (for {by})"))
        .collect();
    if !missing.is_empty() {
        bail!("libraries that no package brought: {}", missing.join(", "));
    }
    Ok(())
}

fn scan(dir: &Path, present: &mut BTreeSet<String>, needed: &mut BTreeSet<(String, String)>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if kind.is_dir() {
            scan(&entry.path(), present, needed)?;
            continue;
        }
        let executable = kind.is_file() && entry.metadata()?.permissions().mode() & 0o111 != 0;
        if executable || name.contains(".so") {
            if kind.is_file() {
                let by = name.clone();
                needed.extend(
                    needed_libraries(&entry.path())?
                        .into_iter()
                        .map(|lib| (lib, by.clone())),
                );
            }
            present.insert(name);
        }
    }
    Ok(())
}

/// Returns DT_NEEDED of an ELF file; nothing for any other file.
pub(crate) fn needed_libraries(path: &Path) -> Result<Vec<String>> {
    let data = fs::read(path)?;
    let Ok(file) = ElfFile64::<Endianness>::parse(&*data) else {
        return Ok(Vec::new());
    };
    let endian = file.endian();
    let sections = file.elf_section_table();
    let Some((dynamic, strings)) = sections.dynamic(endian, &*data)? else {
        return Ok(Vec::new());
    };
    let strings = sections.strings(endian, &*data, strings)?;
    let _ = file.elf_header().e_machine(endian);
    let mut result = Vec::new();
    for entry in dynamic.iter().filter(|d| d.tag32(endian) == Some(elf::DT_NEEDED)) {
        let name = entry.string(endian, strings)?;
        result.push(String::from_utf8_lossy(name).into_owned());
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::{applets, is_needed};

    #[test]
    fn leaves_out_what_only_maintainer_scripts_use() {
        assert!(is_needed("libc6") && is_needed("fio") && is_needed("libaio1") && is_needed("libnuma1"));
        assert!(!is_needed("perl-base") && !is_needed("python3.11-minimal"));
    }

    #[test]
    fn finds_the_applets() {
        let table = b"\x7fELF junk\0[\0[[\0ls\0sh\0udhcpc\0vi\0\0more";
        assert_eq!(applets(table).unwrap(), ["[", "[[", "ls", "sh", "udhcpc", "vi"]);
        assert!(applets(b"nothing here").is_err());
    }
}
