//! Root's pool of 2 MiB huge pages, and the hugetlbfs with files of them.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::RamError;
use crate::config::zone::BLOCK;

const POOL: &str = "sys/kernel/mm/hugepages/hugepages-2048kB";
/// Where hugetlbfs is mounted if it is not mounted yet.
const MOUNT: &str = "dev/hugepages";
/// Mode of the daemon's directory there: guest memory is for root alone.
const PRIVATE: u32 = 0o700;
/// How often the kernel is asked for more pages: it migrates other pages meanwhile.
const ATTEMPTS: usize = 3;

fn read(root: &Path, name: &str) -> Result<u64, RamError> {
    let path = root.join(POOL).join(name);
    let number = fs::read_to_string(&path).and_then(|text| {
        text.trim()
            .parse()
            .map_err(|_| io::Error::other(format!("not a number: {text:?}")))
    });
    number.map_err(|cause| RamError::file(&path, cause))
}

fn set_total(root: &Path, pages: u64) -> io::Result<()> {
    fs::write(root.join(POOL).join("nr_hugepages"), pages.to_string())
}

/// Makes sure that `wanted` pages are free; returns how many were added to the pool for that.
///
/// # Errors
/// There cannot be that many; the pool is as it was.
pub fn ensure(root: &Path, wanted: u64) -> Result<u64, RamError> {
    let available = || -> Result<u64, RamError> {
        Ok(read(root, "free_hugepages")?.saturating_sub(read(root, "resv_hugepages")?))
    };
    let before = read(root, "nr_hugepages")?;
    let free = available()?;
    // Asking for pages that cannot exist would cost root its page cache.
    let possible = available_memory(root)? / BLOCK;
    if wanted.saturating_sub(free) > possible {
        return Err(RamError::NoHugePages {
            wanted,
            free,
            added: possible,
        });
    }
    let mut now = free;
    for _ in 0..ATTEMPTS {
        if now >= wanted {
            break;
        }
        let total = read(root, "nr_hugepages")?.saturating_add(wanted.saturating_sub(now));
        let file = root.join(POOL).join("nr_hugepages");
        set_total(root, total).map_err(|cause| RamError::file(&file, cause))?;
        now = available()?;
    }
    let added = read(root, "nr_hugepages")?.saturating_sub(before);
    if now >= wanted {
        return Ok(added);
    }
    let _ = set_total(root, before);
    Err(RamError::NoHugePages { wanted, free, added })
}

/// Returns the bytes of the pool, in use or not.
///
/// # Errors
/// The kernel has no such pool.
pub fn total(root: &Path) -> Result<u64, RamError> {
    Ok(read(root, "nr_hugepages")?.saturating_mul(BLOCK))
}

/// Returns the bytes that root can give up without swapping.
pub fn available_memory(root: &Path) -> Result<u64, RamError> {
    let path = root.join("proc/meminfo");
    let failed = |cause| RamError::file(&path, cause);
    let text = fs::read_to_string(&path).map_err(failed)?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    let kib = kib.ok_or_else(|| failed(io::Error::other("it does not tell MemAvailable")))?;
    Ok(kib.saturating_mul(1024))
}

/// Removes `added` pages from the pool again.
///
/// # Errors
/// The pool's size cannot be written.
pub fn release(root: &Path, added: u64) -> io::Result<()> {
    if added == 0 {
        return Ok(());
    }
    let total = read(root, "nr_hugepages").map_err(|error| io::Error::other(error.to_string()))?;
    set_total(root, total.saturating_sub(added))
}

/// Returns the daemon's directory on a hugetlbfs with 2 MiB pages, which is mounted if there is none.
///
/// # Errors
/// It can neither be found nor made.
pub fn directory(root: &Path) -> io::Result<PathBuf> {
    let mounts = fs::read_to_string(root.join("proc/mounts"))?;
    let mount = match find_mount(&mounts) {
        Some(mount) => root.join(mount.trim_start_matches('/')),
        None => {
            let mount = root.join(MOUNT);
            fs::create_dir_all(&mount)?;
            let options = c"pagesize=2M";
            rustix::mount::mount(
                "hugetlbfs",
                &mount,
                "hugetlbfs",
                rustix::mount::MountFlags::empty(),
                options,
            )
            .map_err(|error| {
                io::Error::other(format!("cannot mount hugetlbfs at {}: {error}", mount.display()))
            })?;
            mount
        }
    };
    let directory = mount.join("ringd");
    fs::DirBuilder::new()
        .recursive(true)
        .mode(PRIVATE)
        .create(&directory)?;
    if !fs::symlink_metadata(&directory)?.is_dir() {
        let path = directory.display();
        return Err(io::Error::other(format!(
            "{path} is no directory: expected one that ringd made"
        )));
    }
    // One of an earlier version may be open to every user of root.
    fs::set_permissions(&directory, fs::Permissions::from_mode(PRIVATE))?;
    Ok(directory)
}

/// Returns the first hugetlbfs in `/proc/mounts` whose pages have 2 MiB.
fn find_mount(mounts: &str) -> Option<&str> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (target, kind, options) = (fields.next()?, fields.next()?, fields.next()?);
        let size = options
            .split(',')
            .find_map(|option| option.strip_prefix("pagesize="));
        (kind == "hugetlbfs" && size.is_none_or(|size| size == "2M")).then_some(target)
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{POOL, directory, ensure, find_mount, read, release};

    /// A pool in files; unlike the kernel's, `free_hugepages` does not follow `nr_hugepages`.
    fn pool(total: u64, free: u64, reserved: u64) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let pool = root.path().join(POOL);
        fs::create_dir_all(&pool).unwrap();
        for (name, value) in [
            ("nr_hugepages", total),
            ("free_hugepages", free),
            ("resv_hugepages", reserved),
        ] {
            fs::write(pool.join(name), format!("{value}\n")).unwrap();
        }
        fs::create_dir(root.path().join("proc")).unwrap();
        fs::write(
            root.path().join("proc/meminfo"),
            "MemTotal: 9 kB\nMemAvailable:     204800 kB\n",
        )
        .unwrap();
        root
    }

    #[test]
    fn pages_that_root_does_not_have_are_not_requested() {
        let root = pool(20, 5, 2);
        let message = ensure(root.path(), 104).unwrap_err().to_string();
        assert!(
            message.contains("104 of 2 MiB are wanted, root has 3 free and could add only 100 more"),
            "{message}"
        );
    }

    #[test]
    fn enough_free_pages_are_not_changed() {
        let root = pool(20, 12, 2);
        assert_eq!(ensure(root.path(), 10).unwrap(), 0);
        assert_eq!(read(root.path(), "nr_hugepages").unwrap(), 20);
    }

    #[test]
    fn too_few_are_reported_and_the_pool_is_restored() {
        let root = pool(20, 5, 2);
        let message = ensure(root.path(), 10).unwrap_err().to_string();
        assert!(
            message.starts_with("no huge pages left: 10 of 2 MiB are wanted, root has 3 free"),
            "{message}"
        );
        assert!(message.contains("hugepages=N"), "{message}");
        assert_eq!(read(root.path(), "nr_hugepages").unwrap(), 20);
    }

    #[test]
    fn added_pages_are_returned() {
        let root = pool(20, 0, 0);
        release(root.path(), 7).unwrap();
        assert_eq!(read(root.path(), "nr_hugepages").unwrap(), 13);
        release(root.path(), 0).unwrap();
        assert_eq!(read(root.path(), "nr_hugepages").unwrap(), 13);
    }

    #[test]
    fn a_mount_with_2_mib_pages_is_found() {
        let mounts = "proc /proc proc rw 0 0\n\
                      hugetlbfs /mnt/1g hugetlbfs rw,pagesize=1024M 0 0\n\
                      hugetlbfs /dev/hugepages hugetlbfs rw,relatime,pagesize=2M 0 0\n";
        assert_eq!(find_mount(mounts), Some("/dev/hugepages"));
        assert_eq!(find_mount("proc /proc proc rw 0 0\n"), None);
        assert_eq!(find_mount("none /huge hugetlbfs rw 0 0\n"), Some("/huge"));
    }

    #[test]
    fn the_directory_is_made_on_the_mount() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("proc")).unwrap();
        fs::write(
            root.path().join("proc/mounts"),
            "x /dev/huge hugetlbfs rw,pagesize=2M 0 0\n",
        )
        .unwrap();
        let directory = directory(root.path()).unwrap();
        assert_eq!(directory, root.path().join("dev/huge/ringd"));
        assert!(directory.is_dir());
    }
}
