//! QEMU 10 from Debian's backports, unpacked into the cache and run from there: nothing is installed on the machine.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::apt::{self, Apt, Request};
use crate::cache::{Cache, Key};
use crate::cmd;

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

/// The program to run.
///
/// # Errors
/// The packages cannot be had, or the program does not run on this machine.
pub fn obtain(cache: &Cache) -> Result<PathBuf> {
    let lock = cache.lock()?;
    let architecture = cmd::text(cmd::command("dpkg").arg("--print-architecture"))?;
    let apt = Apt::open(cache, architecture.trim())?;
    let request = Request {
        packages: &["qemu-system-arm"],
        backports: true,
    };
    let debs = apt.packages("qemu", request, is_part)?;
    let key = Key::new(1).with(&debs).with(WRAPPER);
    let dir = cache.publish(&lock, "qemu10", &key, |dir| {
        cmd::step("unpacking QEMU 10");
        for sub in ["usr/bin", "usr/lib"] {
            fs::create_dir_all(dir.join(sub))?;
        }
        for (link, target) in [("bin", "usr/bin"), ("lib", "usr/lib")] {
            std::os::unix::fs::symlink(target, dir.join(link))?;
        }
        apt::unpack(
            &debs,
            dir,
            &["./usr/share/doc", "./usr/share/man", "./usr/share/locale"],
        )?;
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

/// Libraries and QEMU's own files. The C library must be the one of the dynamic linker, which is the machine's.
fn is_part(name: &str) -> bool {
    (name.starts_with("lib") || name.starts_with("qemu-system-") || name.starts_with("ipxe"))
        && !["libc6", "libc-bin", "libpam", "libperl", "libpython"]
            .iter()
            .any(|p| name.starts_with(p))
        && name != "libc6"
}
