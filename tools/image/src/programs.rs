//! Disks with programs for tests, and the libraries they need: git, SQLite and tar for a guest ([`disk`]),
//! servers and clients of disks, and kexec, for root ([`storage`]).

use std::fs;
use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::apt::{self, Apt, Request};
use crate::cache::{Cache, Key};
use crate::{cmd, ext4};

/// A disk.
struct Set {
    /// Its label, and the role under which apt's answer is kept.
    name: &'static str,
    /// What the programs come from.
    packages: &'static [&'static str],
    /// Programs that must be there.
    programs: &'static [&'static str],
}

const PROGRAMS: Set = Set {
    name: "programs",
    packages: &["git", "sqlite3", "tar"],
    programs: &["bin/git", "bin/sqlite3"],
};

const STORAGE: Set = Set {
    name: "storage",
    packages: &["qemu-system-common", "qemu-utils", "nbd-client", "kexec-tools"],
    programs: &[
        "bin/qemu-storage-daemon",
        "bin/qemu-nbd",
        "sbin/nbd-client",
        "sbin/kexec",
    ],
};

/// Size of a disk. Sparse.
const BYTES: u64 = 512 << 20;
/// What no program reads.
const EXCLUDE: &[&str] = &[
    "./usr/share/doc",
    "./usr/share/man",
    "./usr/share/locale",
    "./etc",
    "./var",
];

/// Returns an ext4 disk with `usr/bin` and `usr/lib/aarch64-linux-gnu`, to be mounted anywhere. The C library
/// is the guest's own.
///
/// # Errors
/// The packages cannot be had, or the cache cannot be written.
pub fn disk(cache: &Cache) -> Result<PathBuf> {
    make(cache, &PROGRAMS)
}

/// Returns a disk like that of [`disk`], with `qemu-storage-daemon`, `qemu-nbd`, `qemu-img` and, in
/// `usr/sbin`, `nbd-client` and `kexec`.
///
/// # Errors
/// The packages cannot be had, or the cache cannot be written.
pub fn storage(cache: &Cache) -> Result<PathBuf> {
    make(cache, &STORAGE)
}

fn make(cache: &Cache, set: &Set) -> Result<PathBuf> {
    let lock = cache.lock()?;
    let apt = Apt::open(cache, "arm64")?;
    let request = Request {
        packages: set.packages,
        backports: false,
    };
    let debs = apt.packages(set.name, request, is_part)?;
    let key = Key::new(2).with(&debs).with(EXCLUDE);
    cache.publish(&lock, &format!("{}-disk", set.name), &key, |path| {
        cmd::step(&format!("making the disk {} for tests", set.name));
        let tree = path.with_extension("tree");
        for (link, target) in [("bin", "usr/bin"), ("sbin", "usr/sbin"), ("lib", "usr/lib")] {
            fs::create_dir_all(tree.join(target))?;
            std::os::unix::fs::symlink(target, tree.join(link))?;
        }
        apt::unpack(&debs, &tree, EXCLUDE)?;
        for program in set.programs {
            if !tree.join("usr").join(program).is_file() {
                bail!("Debian's packages have no usr/{program}");
            }
        }
        ext4::make(&tree, path, BYTES, set.name)?;
        Ok(fs::remove_dir_all(&tree)?)
    })
}

/// Accepts the programs and the libraries, but for those of the dynamic linker, which is the machine's, and
/// of Perl.
fn is_part(name: &str) -> bool {
    PROGRAMS.packages.contains(&name)
        || STORAGE.packages.contains(&name)
        || name.starts_with("lib")
            && ![
                "libc6",
                "libc-bin",
                "libperl",
                "libgdbm",
                "libdb5",
                "liberror-perl",
            ]
            .iter()
            .any(|other| name.starts_with(other))
}
