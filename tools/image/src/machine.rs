//! The entry points: all files that one machine boots, made when they are not in the cache.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::apt::Apt;
use crate::cache::{Cache, Key, Lock};
use crate::cmd;
use crate::ext4;
use crate::initramfs;
use crate::kernel::{Flavour, Kernel};
use crate::userland::Userland;

/// Size of root's disk. Sparse; room for images that scripts make.
const ROOT_DISK_BYTES: u64 = 8 << 30;
/// Size of the guest's root disk. Sparse.
pub(crate) const GUEST_DISK_BYTES: u64 = 512 << 20;

const GUEST_SCRIPTS: &[(&str, &str)] = &[
    ("inittab", include_str!("../files/guest/inittab")),
    ("rcS", include_str!("../files/guest/rcS")),
    ("console", include_str!("../files/guest/console")),
];

/// Returns the private key by which one logs into guests as root. It is made for this cache, and no other
/// guest has it.
///
/// # Errors
/// There is no `ssh-keygen`, or the cache cannot be written.
pub fn guest_key(cache: &Cache) -> Result<PathBuf> {
    obtain_key(cache, &cache.lock()?)
}

fn obtain_key(cache: &Cache, lock: &Lock) -> Result<PathBuf> {
    let dir = cache.publish(lock, "guest-key", &Key::new(1), |dir| {
        fs::create_dir_all(dir)?;
        let mut command = cmd::command("ssh-keygen");
        command.args(["-q", "-t", "ed25519", "-N", "", "-C", "ringvisor-guest", "-f"]);
        cmd::run(command.arg(dir.join("key"))).context("cannot make a key for guests")
    })?;
    Ok(dir.join("key"))
}

/// What a machine boots.
#[derive(Debug, Clone)]
pub struct BootFiles {
    /// Raw arm64 Image file.
    pub kernel: PathBuf,
    /// Root's initramfs, to be followed by an [`initramfs::Overlay`]; a guest's, gzip-compressed, that mounts
    /// `root=`.
    pub initramfs: PathBuf,
    /// ext4 root file system; root's also has the guest's files in `/srv/zones`.
    pub disk: PathBuf,
}

/// Returns the files of a guest with the kernel `flavour`.
///
/// # Errors
/// A package cannot be had, or the cache cannot be written.
pub fn guest_files(cache: &Cache, flavour: Flavour) -> Result<BootFiles> {
    let lock = cache.lock()?;
    let apt = Apt::open(cache, "arm64")?;
    let userland = Userland::obtain(cache, &lock, &apt)?;
    guest(cache, &lock, &apt, &userland, flavour)
}

/// Returns the files of root with the kernel `flavour`.
///
/// # Errors
/// A package cannot be had, or the cache cannot be written.
pub fn root_files(cache: &Cache, flavour: Flavour) -> Result<BootFiles> {
    let lock = cache.lock()?;
    let apt = Apt::open(cache, "arm64")?;
    let userland = Userland::obtain(cache, &lock, &apt)?;
    let kernel = Kernel::obtain(cache, &lock, &apt, flavour)?;
    let initramfs = initramfs::root(cache, &lock, flavour, &kernel, &userland)?;
    let guest = guest(cache, &lock, &apt, &userland, Flavour::Cloud)?;
    let disk = root_disk(cache, &lock, &userland, &guest)?;
    Ok(BootFiles {
        kernel: kernel.file(),
        initramfs,
        disk,
    })
}

/// As [`guest_files`], of a cache that is locked.
pub(crate) fn guest(
    cache: &Cache,
    lock: &Lock,
    apt: &Apt,
    userland: &Userland,
    flavour: Flavour,
) -> Result<BootFiles> {
    let kernel = Kernel::obtain(cache, lock, apt, flavour)?;
    let initramfs = initramfs::guest(cache, lock, flavour, &kernel, userland)?;
    let login = guest_login(cache, lock)?;
    let key = Key::new(2).with(&userland.dir).with(GUEST_SCRIPTS).with(&login);
    let disk = cache.publish(lock, "guest-disk", &key, |path| {
        cmd::step("making the guest's disk");
        let tree = guest_tree(userland, &login, path)?;
        ext4::make(&tree, path, GUEST_DISK_BYTES, "guest-root")?;
        Ok(fs::remove_dir_all(&tree)?)
    })?;
    Ok(BootFiles {
        kernel: kernel.file(),
        initramfs,
        disk,
    })
}

/// Returns the public key by which one logs in to a guest.
pub(crate) fn guest_login(cache: &Cache, lock: &Lock) -> Result<String> {
    Ok(fs::read_to_string(
        obtain_key(cache, lock)?.with_extension("pub"),
    )?)
}

/// Makes a guest's directory tree next to `path`, for logins by the public key `login`.
pub(crate) fn guest_tree(userland: &Userland, login: &str, path: &Path) -> Result<PathBuf> {
    let tree = copy_tree(&userland.dir, path)?;
    for (name, text) in GUEST_SCRIPTS {
        let file = tree.join("etc").join(name);
        fs::write(&file, text)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?;
    }
    let ssh = tree.join("root/.ssh");
    fs::create_dir_all(&ssh)?;
    fs::write(ssh.join("authorized_keys"), login)?;
    for private in [tree.join("root"), ssh] {
        fs::set_permissions(&private, fs::Permissions::from_mode(0o700))?;
    }
    Ok(tree)
}

fn root_disk(cache: &Cache, lock: &Lock, userland: &Userland, guest: &BootFiles) -> Result<PathBuf> {
    let key = Key::new(1)
        .with(&userland.dir)
        .with(&guest.kernel)
        .with(&guest.initramfs)
        .with(&guest.disk);
    cache.publish(lock, "root-disk", &key, |path| {
        cmd::step("making root's disk");
        let tree = copy_tree(&userland.dir, path)?;
        let zones = tree.join("srv/zones");
        fs::create_dir_all(&zones)?;
        for (from, name) in [
            (&guest.kernel, "Image"),
            (&guest.initramfs, "initrd.cpio.gz"),
            (&guest.disk, "rootfs.img"),
        ] {
            cmd::run(
                cmd::command("cp")
                    .args(["--sparse=always", "--"])
                    .arg(from)
                    .arg(zones.join(name)),
            )?;
        }
        ext4::make(&tree, path, ROOT_DISK_BYTES, "ringvisor-root")?;
        Ok(fs::remove_dir_all(&tree)?)
    })
}

/// Copies the userland next to `path`, as hard links where possible: only whole files are replaced in the
/// copy.
fn copy_tree(userland: &Path, path: &Path) -> Result<PathBuf> {
    let tree = path.with_extension("tree");
    let copied = cmd::run(cmd::command("cp").args(["-al", "--"]).arg(userland).arg(&tree));
    if copied.is_err() {
        cmd::run(cmd::command("cp").args(["-a", "--"]).arg(userland).arg(&tree))
            .context("cannot copy the userland")?;
    }
    Ok(tree)
}
