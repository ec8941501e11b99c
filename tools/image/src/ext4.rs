//! Makes ext4 images from directory trees, without root privileges.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cmd;

/// Makes `image`, a sparse file of `size` bytes, with the contents of `tree` and the volume label `label`.
///
/// Features that the older of our kernels or fsck would not know are not used. The journal is kept: power
/// cuts are part of what the images are used for.
///
/// # Errors
/// The tree does not fit, or `mke2fs` fails.
pub fn make(tree: &Path, image: &Path, size: u64, label: &str) -> Result<()> {
    File::create(image)
        .and_then(|f| f.set_len(size))
        .with_context(|| format!("cannot create {}", image.display()))?;
    let mut mke2fs = tool("mke2fs");
    mke2fs.args(["-q", "-F", "-t", "ext4", "-m", "0", "-L", label]);
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

/// Removes `lost+found`, which `mke2fs` makes in each file system, from `image`.
///
/// # Errors
/// `debugfs` fails, or the directory is still there.
pub fn remove_lost_and_found(image: &Path) -> Result<()> {
    cmd::output(tool("debugfs").args(["-w", "-R", "rmdir lost+found"]).arg(image))?;
    // debugfs ends with 0 whatever came of the request.
    let left = cmd::text(tool("debugfs").args(["-R", "ls -p"]).arg(image))?;
    if left.contains("/lost+found/") {
        bail!("debugfs cannot remove lost+found from {}", image.display());
    }
    Ok(())
}

/// Returns the command of a program of e2fsprogs, which an ordinary user's path may lack.
fn tool(program: &str) -> Command {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let mut command = cmd::command(program);
    command.env("PATH", path);
    command
}

/// Returns the bytes that the files below `dir` occupy, counting holes as nothing.
///
/// # Errors
/// Something cannot be read.
pub fn usage(dir: &Path) -> Result<u64> {
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
    use crate::cmd;

    use super::{make, remove_lost_and_found, tool};

    #[test]
    fn an_image_holds_the_tree_and_is_clean() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree with spaces");
        std::fs::create_dir(&tree).unwrap();
        std::fs::write(tree.join("file"), "contents\n").unwrap();
        let image = dir.path().join("image");
        make(&tree, &image, 16 << 20, "label1").unwrap();
        cmd::output(tool("e2fsck").arg("-fn").arg(&image)).unwrap();
        let text = cmd::text(tool("debugfs").args(["-R", "cat file"]).arg(&image)).unwrap();
        assert_eq!(text, "contents\n");
        let names = || cmd::text(tool("debugfs").args(["-R", "ls -p"]).arg(&image)).unwrap();
        assert!(names().contains("/lost+found/"));
        remove_lost_and_found(&image).unwrap();
        assert!(!names().contains("/lost+found/") && names().contains("/file/"));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("tree")).unwrap();
        std::fs::write(dir.path().join("tree/big"), vec![1u8; 8 << 20]).unwrap();
        assert!(make(&dir.path().join("tree"), &dir.path().join("image"), 4 << 20, "x").is_err());
    }
}
