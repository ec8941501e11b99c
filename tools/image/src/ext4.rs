//! Makes ext4 images from directory trees, without root privileges.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result};

use crate::cmd;

/// Makes `image`, a sparse file of `size` bytes, with the contents of `tree` and the volume label `label`.
///
/// Features that the older of our kernels or fsck would not know are not used. The journal is kept: power cuts are
/// part of what the images are used for.
///
/// # Errors
/// The tree does not fit, or `mke2fs` fails.
pub fn make(tree: &Path, image: &Path, size: u64, label: &str) -> Result<()> {
    File::create(image)
        .and_then(|f| f.set_len(size))
        .with_context(|| format!("cannot create {}", image.display()))?;
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let mut mke2fs = cmd::command("mke2fs");
    mke2fs
        .env("PATH", path)
        .args(["-q", "-F", "-t", "ext4", "-m", "0", "-L", label]);
    mke2fs
        .args([
            "-E",
            "root_owner=0:0,lazy_itable_init=1,lazy_journal_init=1",
            "-d",
        ])
        .arg(tree)
        .arg(image);
    cmd::output(&mut mke2fs).map(drop)
}

/// Bytes that the files below `dir` occupy, counting holes as nothing.
///
/// # Errors
/// Something cannot be read.
pub fn usage(dir: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let mut sum = 0u64;
    for entry in std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let entry = entry?;
        let meta = entry.metadata()?;
        sum = sum
            .saturating_add(meta.blocks().saturating_mul(512))
            .saturating_add(4096);
        if meta.is_dir() {
            sum = sum.saturating_add(usage(&entry.path())?);
        }
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_holds_the_tree_and_is_clean() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree with spaces");
        std::fs::create_dir(&tree).unwrap();
        std::fs::write(tree.join("file"), "contents\n").unwrap();
        let image = dir.path().join("image");
        make(&tree, &image, 16 << 20, "label1").unwrap();
        let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
        cmd::output(cmd::command("e2fsck").env("PATH", &path).arg("-fn").arg(&image)).unwrap();
        let text = cmd::text(
            cmd::command("debugfs")
                .env("PATH", &path)
                .args(["-R", "cat file"])
                .arg(&image),
        )
        .unwrap();
        assert_eq!(text, "contents\n");
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("tree")).unwrap();
        std::fs::write(dir.path().join("tree/big"), vec![1u8; 8 << 20]).unwrap();
        assert!(make(&dir.path().join("tree"), &dir.path().join("image"), 4 << 20, "x").is_err());
    }
}
