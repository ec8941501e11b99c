//! QEMU 10 from Debian's backports: for this machine ([`obtain`]), unpacked into the cache and run from
//! there, so that nothing is installed; and for root ([`root_disk`]), where it runs guests under KVM to be
//! compared with.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::apt::{self, Apt, Deb, Request};
use crate::cache::{Cache, Key};
use crate::{cmd, ext4};

/// Label of the disk made by [`root_disk`].
pub const ROOT_DISK_LABEL: &str = "ringvisor-qemu";
/// Size of that disk. Sparse.
const ROOT_DISK_BYTES: u64 = 1 << 30;
/// What a guest that is given its kernel, and a machine without display and network, do without.
const ROOT_EXCLUDE: &[&str] = &["./usr/share", "./etc", "./var", "./lib/udev", "./usr/lib/systemd"];

const QEMU: Request<'_> = Request {
    packages: &["qemu-system-arm"],
    backports: true,
};
/// Parts of packages without use here.
const EXCLUDE: &[&str] = &["./usr/share/doc", "./usr/share/man", "./usr/share/locale"];
/// Starts the unpacked QEMU with its own libraries, but the machine's C library, and its own firmware files.
const WRAPPER: &str = r#"#!/bin/sh
here=$(dirname "$(readlink -f "$0")")
for dir in "$here"/usr/lib/*-linux-gnu "$here"/usr/lib/*-linux-gnu/pulseaudio; do
    libraries="${libraries:+$libraries:}$dir"
done
export LD_LIBRARY_PATH="$libraries"
export QEMU_MODULE_DIR="$here/usr/lib/qemu-modules"
exec "$here/usr/bin/qemu-system-aarch64" -L "$here/usr/share/qemu" "$@"
"#;

/// Returns the program to run.
///
/// # Errors
/// The packages cannot be had, or the program does not run on this machine.
pub fn obtain(cache: &Cache) -> Result<PathBuf> {
    let lock = cache.lock()?;
    let architecture = cmd::text(cmd::command("dpkg").arg("--print-architecture"))?;
    let apt = Apt::open(cache, architecture.trim())?;
    let debs = apt.packages("qemu", QEMU, is_part)?;
    let key = Key::new(1).with(&debs).with(WRAPPER);
    let dir = cache.publish(&lock, "qemu10", &key, |dir| {
        cmd::step("unpacking QEMU 10");
        unpack(&debs, dir, EXCLUDE)?;
        let wrapper = dir.join("qemu");
        fs::write(&wrapper, WRAPPER)?;
        fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
        let version =
            cmd::text(cmd::command(&wrapper).arg("--version")).context("the unpacked QEMU does not run")?;
        if !version.contains("version 10.") {
            bail!("backports have another version than 10: {}", version.trim());
        }
        Ok(())
    })?;
    Ok(dir.join("qemu"))
}

/// Returns an ext4 disk with Debian's arm64 QEMU and its libraries, to be mounted in root:
/// `usr/bin/qemu-system-aarch64` and `usr/lib/aarch64-linux-gnu`. The C library is root's own.
///
/// # Errors
/// The packages cannot be had, or the cache cannot be written.
pub fn root_disk(cache: &Cache) -> Result<PathBuf> {
    let lock = cache.lock()?;
    let apt = Apt::open(cache, "arm64")?;
    let debs = apt.packages("qemu-root", QEMU, is_part)?;
    let key = Key::new(1).with(&debs).with(ROOT_EXCLUDE);
    cache.publish(&lock, "qemu-root-disk", &key, |path| {
        cmd::step("making the disk with QEMU for root");
        let tree = path.with_extension("tree");
        unpack(&debs, &tree, ROOT_EXCLUDE)?;
        if !tree.join("usr/bin/qemu-system-aarch64").is_file() {
            bail!("Debian's qemu-system-arm has no usr/bin/qemu-system-aarch64");
        }
        ext4::make(&tree, path, ROOT_DISK_BYTES, ROOT_DISK_LABEL)?;
        Ok(fs::remove_dir_all(&tree)?)
    })
}

/// Unpacks packages into `dir`, which has a merged `/usr`.
fn unpack(debs: &[Deb], dir: &Path, exclude: &[&str]) -> Result<()> {
    for (link, target) in [("bin", "usr/bin"), ("lib", "usr/lib")] {
        fs::create_dir_all(dir.join(target))?;
        symlink(target, dir.join(link))?;
    }
    apt::unpack(debs, dir, exclude)
}

/// Libraries and QEMU's own files. The C library must be the one of the dynamic linker, which is the
/// machine's.
fn is_part(name: &str) -> bool {
    (name.starts_with("lib") || name.starts_with("qemu-system-") || name.starts_with("ipxe"))
        && !["libc6", "libc-bin", "libpam", "libperl", "libpython"]
            .iter()
            .any(|p| name.starts_with(p))
        && name != "libc6"
}
