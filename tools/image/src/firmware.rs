//! Firmware of Debian's for QEMU's `virt`, for a zone's flash.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::apt::{self, Apt, Request};
use crate::cache::{Cache, Key};
use crate::cmd;

const PACKAGES: &[&str] = &["u-boot-qemu", "qemu-efi-aarch64"];
/// Files below `usr`.
const FILES: &[&str] = &[
    "lib/u-boot/qemu_arm64/u-boot.bin",
    "share/qemu-efi-aarch64/QEMU_EFI.fd",
];
const EXCLUDE: &[&str] = &["./usr/share/doc", "./usr/share/AAVMF", "./usr/share/qemu"];

/// Returns a directory with `u-boot.bin` and `QEMU_EFI.fd`.
///
/// # Errors
/// The packages cannot be had, or the cache cannot be written.
pub fn obtain(cache: &Cache) -> Result<PathBuf> {
    let lock = cache.lock()?;
    let apt = Apt::open(cache, "arm64")?;
    let request = Request {
        packages: PACKAGES,
        backports: false,
    };
    let debs = apt.packages("firmware", request, |name| PACKAGES.contains(&name))?;
    let key = Key::new(1).with(&debs).with(FILES);
    cache.publish(&lock, "firmware", &key, |path| {
        cmd::step("unpacking U-Boot and EDK2");
        let tree = path.with_extension("tree");
        fs::create_dir_all(&tree)?;
        fs::create_dir_all(path)?;
        apt::unpack(&debs, &tree, EXCLUDE)?;
        for file in FILES {
            let from = tree.join("usr").join(file);
            let name = from.file_name().context("a file without a name")?;
            fs::copy(&from, path.join(name))
                .with_context(|| format!("Debian's packages have no usr/{file}"))?;
        }
        Ok(fs::remove_dir_all(&tree)?)
    })
}
