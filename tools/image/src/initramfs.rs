//! The initramfs archives of root and of guests: a static busybox, modules and one script each.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cache::{Cache, Key, Lock};
use crate::cmd;
use crate::cpio::Archive;
use crate::kernel::{Flavour, Kernel};
use crate::userland::Userland;

const ROOT_INIT: &str = include_str!("../files/root/init");
const GUEST_INIT: &str = include_str!("../files/guest/init");

/// Returns root's initramfs, without what one run adds to it ([`Overlay`]). Not compressed: it is read from
/// the host's memory.
///
/// # Errors
/// A part is missing, or the cache cannot be written.
pub fn root(
    cache: &Cache,
    lock: &Lock,
    flavour: Flavour,
    kernel: &Kernel,
    userland: &Userland,
) -> Result<PathBuf> {
    let key = Key::new(1)
        .with(ROOT_INIT)
        .with(kernel.file())
        .with(&userland.dir);
    cache.publish(lock, &format!("root-initramfs-{flavour}"), &key, |path| {
        let data = base(ROOT_INIT, &userland.busybox(), &kernel.root_modules())?;
        Ok(fs::write(path, data)?)
    })
}

/// Returns the guests' initramfs, gzip-compressed as they usually are.
///
/// # Errors
/// A part is missing, or the cache cannot be written.
pub fn guest(
    cache: &Cache,
    lock: &Lock,
    flavour: Flavour,
    kernel: &Kernel,
    userland: &Userland,
) -> Result<PathBuf> {
    let key = Key::new(1)
        .with(GUEST_INIT)
        .with(kernel.file())
        .with(&userland.dir);
    cache.publish(lock, &format!("guest-initramfs-{flavour}"), &key, |path| {
        let data = base(GUEST_INIT, &userland.busybox(), &kernel.guest_modules())?;
        let plain = path.with_extension("cpio");
        fs::write(&plain, data)?;
        fs::write(
            path,
            cmd::output(cmd::command("gzip").args(["-9nc"]).arg(&plain))?,
        )?;
        Ok(fs::remove_file(&plain)?)
    })
}

fn base(init: &str, busybox: &Path, modules: &Path) -> Result<Vec<u8>> {
    let mut archive = Archive::new();
    for dir in ["bin", "dev"] {
        archive.dir(dir);
    }
    archive.char_device("dev/console", 5, 1);
    archive.file("init", 0o755, init.as_bytes())?;
    let busybox = fs::read(busybox).with_context(|| format!("cannot read {}", busybox.display()))?;
    archive.file("bin/busybox", 0o755, &busybox)?;
    archive.symlink("bin/sh", "busybox");
    archive.tree(modules)?;
    archive.symlink("lib", "usr/lib");
    Ok(archive.finish())
}

/// What root's start-up scripts find in `/run/ringvisor`, apart from what the harness adds.
const SCRIPTS: &[(&str, &str)] = &[
    ("inittab", include_str!("../files/root/inittab")),
    ("setup", include_str!("../files/root/setup")),
    ("main", include_str!("../files/root/main")),
    ("exec", include_str!("../files/root/exec")),
    ("greet", include_str!("../files/root/greet")),
];

/// A second archive, to be appended to [`root`]'s, that makes one run of the machine what it is.
#[derive(Debug, Default)]
pub struct Overlay {
    archive: Archive,
}

impl Overlay {
    /// Begins the archive with the scripts and the settings `conf` (shell assignments).
    ///
    /// # Errors
    /// None in practice: the files are small.
    pub fn new(conf: &str) -> Result<Self> {
        let mut archive = Archive::new();
        for dir in ["overlay", "overlay/bin", "overlay/zones"] {
            archive.dir(dir);
        }
        for (name, text) in SCRIPTS {
            archive.file(&format!("overlay/{name}"), 0o755, text.as_bytes())?;
        }
        archive.file("overlay/conf", 0o644, conf.as_bytes())?;
        Ok(Self { archive })
    }

    /// Adds a program that will be on root's path.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn program(&mut self, path: &Path) -> Result<()> {
        self.copy(path, "bin", 0o755)
    }

    /// Adds a file below `/srv/zones`.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn zone_file(&mut self, path: &Path) -> Result<()> {
        self.copy(path, "zones", 0o644)
    }

    fn copy(&mut self, path: &Path, dir: &str, mode: u32) -> Result<()> {
        let name = path.file_name().and_then(|n| n.to_str());
        let name = name.with_context(|| format!("{}: no name", path.display()))?;
        let data = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        self.archive.file(&format!("overlay/{dir}/{name}"), mode, &data)
    }

    /// Adds the script that `make exec` runs.
    ///
    /// # Errors
    /// It is larger than the format allows.
    pub fn script(&mut self, contents: &[u8]) -> Result<()> {
        self.archive.file("overlay/script", 0o755, contents)
    }

    /// Returns the finished archive.
    pub fn finish(self) -> Vec<u8> {
        self.archive.finish()
    }
}
