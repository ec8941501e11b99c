//! A disk with programs that a guest's disk is tested with: git, SQLite and tar, and the libraries they need.

use std::fs;
use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::apt::{self, Apt, Request};
use crate::cache::{Cache, Key};
use crate::{cmd, ext4};

/// What they come from.
const PACKAGES: &[&str] = &["git", "sqlite3", "tar"];
/// Size of the disk. Sparse.
const BYTES: u64 = 512 << 20;
/// What no program reads.
const EXCLUDE: &[&str] = &[
    "./usr/share/doc",
    "./usr/share/man",
    "./usr/share/locale",
    "./etc",
    "./var",
];

/// An ext4 disk with `usr/bin` and `usr/lib/aarch64-linux-gnu`, to be mounted anywhere. The C library is the guest's own.
///
/// # Errors
/// The packages cannot be had, or the cache cannot be written.
pub fn disk(cache: &Cache) -> Result<PathBuf> {
    let lock = cache.lock()?;
    let apt = Apt::open(cache, "arm64")?;
    let request = Request {
        packages: PACKAGES,
        backports: false,
    };
    let debs = apt.packages("programs", request, is_part)?;
    let key = Key::new(1).with(&debs).with(EXCLUDE);
    cache.publish(&lock, "programs-disk", &key, |path| {
        cmd::step("making the disk with programs for tests");
        let tree = path.with_extension("tree");
        for sub in ["usr/bin", "usr/lib"] {
            fs::create_dir_all(tree.join(sub))?;
        }
        for (link, target) in [("bin", "usr/bin"), ("lib", "usr/lib")] {
            std::os::unix::fs::symlink(target, tree.join(link))?;
        }
        apt::unpack(&debs, &tree, EXCLUDE)?;
        for program in ["git", "sqlite3"] {
            if !tree.join("usr/bin").join(program).is_file() {
                bail!("Debian's {program} has no usr/bin/{program}");
            }
        }
        ext4::make(&tree, path, BYTES, "programs")?;
        Ok(fs::remove_dir_all(&tree)?)
    })
}

/// The programs and the libraries, but for those of the dynamic linker, which is the guest's, and of Perl.
fn is_part(name: &str) -> bool {
    PACKAGES.contains(&name)
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
