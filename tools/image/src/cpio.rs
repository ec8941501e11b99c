//! Writes initramfs archives: cpio in the "newc" format (Linux,
//! `driver-api/early-userspace/buffer-format.rst`).
//!
//! Owner and group of everything are root and times are zero, so the archive does not depend on who makes it
//! or when. Archives may be concatenated; a later entry replaces an earlier one of the same name.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, bail};

const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;
const S_IFCHR: u32 = 0o020_000;

/// An archive that grows in memory.
#[derive(Debug, Default)]
pub struct Archive {
    data: Vec<u8>,
    inode: u32,
}

impl Archive {
    /// Returns an empty archive.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a directory. Parents are not created.
    pub fn dir(&mut self, name: &str) {
        self.entry(name.as_bytes(), S_IFDIR | 0o755, 0, &[]);
    }

    /// Adds a regular file with the permission bits `mode`.
    ///
    /// # Errors
    /// The format has no room for 4 GiB or more.
    pub fn file(&mut self, name: &str, mode: u32, contents: &[u8]) -> Result<()> {
        if u32::try_from(contents.len()).is_err() {
            bail!("{name} is too large for an initramfs: {} bytes", contents.len());
        }
        self.entry(name.as_bytes(), S_IFREG | (mode & 0o7777), 0, contents);
        Ok(())
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, name: &str, target: &str) {
        self.entry(name.as_bytes(), S_IFLNK | 0o777, 0, target.as_bytes());
    }

    /// Adds a character device.
    pub fn char_device(&mut self, name: &str, major: u32, minor: u32) {
        self.entry(name.as_bytes(), S_IFCHR | 0o600, major << 16 | minor, &[]);
    }

    /// Adds everything below `dir` on the host, in name order.
    ///
    /// # Errors
    /// Something cannot be read, or a name is not UTF-8.
    pub fn tree(&mut self, dir: &Path) -> Result<()> {
        self.subtree(dir, "")
    }

    fn subtree(&mut self, dir: &Path, prefix: &str) -> Result<()> {
        let mut entries: Vec<_> = fs::read_dir(dir)
            .and_then(Iterator::collect)
            .with_context(|| format!("cannot read {}", dir.display()))?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            let file_name = entry.file_name();
            let file_name = file_name
                .to_str()
                .with_context(|| format!("name is not UTF-8: {}", path.display()))?;
            let name = format!("{prefix}{file_name}");
            let meta = entry.metadata()?;
            if meta.is_dir() {
                self.dir(&name);
                self.subtree(&path, &format!("{name}/"))?;
            } else if meta.is_symlink() {
                let target = fs::read_link(&path)?;
                self.entry(name.as_bytes(), S_IFLNK | 0o777, 0, target.as_os_str().as_bytes());
            } else if meta.is_file() {
                let contents = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
                self.file(&name, meta.permissions().mode(), &contents)?;
            }
        }
        Ok(())
    }

    /// Returns the finished archive, padded so that another may follow.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry(b"TRAILER!!!", 0, 0, &[]);
        self.data.resize(self.data.len().next_multiple_of(512), 0);
        self.data
    }

    fn entry(&mut self, name: &[u8], mode: u32, rdev: u32, contents: &[u8]) {
        self.inode += 1;
        let links = if mode & S_IFDIR == S_IFDIR { 2 } else { 1 };
        // The callers have checked the length of the contents; a name is a path on the host.
        let fields = [
            self.inode,
            mode,
            0, // uid
            0, // gid
            links,
            0, // mtime
            contents.len() as u32,
            0,
            0, // device of the archive's file
            rdev >> 16,
            rdev & 0xffff,
            name.len() as u32 + 1,
            0, // checksum: none
        ];
        self.data.extend_from_slice(b"070701");
        for field in fields {
            self.data.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.data.extend_from_slice(name);
        self.data.push(0);
        self.pad();
        self.data.extend_from_slice(contents);
        self.pad();
    }

    fn pad(&mut self) {
        self.data.resize(self.data.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use crate::cmd;

    use super::Archive;

    #[test]
    fn cpio_reads_what_we_write() {
        let dir = tempfile::tempdir().unwrap();
        let mut archive = Archive::new();
        archive.dir("bin");
        archive.file("bin/tool", 0o755, b"odd length").unwrap();
        archive.symlink("sh", "bin/tool");
        archive.char_device("console", 5, 1);
        let file = dir.path().join("a.cpio");
        fs::write(&file, archive.finish()).unwrap();
        let script = "cpio -itv --quiet < \"$1\"";
        let list = cmd::text(cmd::command("sh").args(["-c", script, "sh"]).arg(&file)).unwrap();
        let lines: Vec<_> = list.lines().collect();
        assert_eq!(lines.len(), 4, "{list}");
        assert!(
            lines[0].starts_with("drwxr-xr-x") && lines[0].ends_with(" bin"),
            "{list}"
        );
        assert!(
            lines[1].starts_with("-rwxr-xr-x") && lines[1].contains(" 10 "),
            "{list}"
        );
        assert!(lines[2].ends_with("sh -> bin/tool"), "{list}");
        assert!(
            lines[3].starts_with("crw-------") && lines[3].contains("5,   1"),
            "{list}"
        );
    }

    #[test]
    fn a_tree_is_read_in_name_order() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b", "a", "c"] {
            fs::write(dir.path().join(name), name).unwrap();
        }
        let mut one = Archive::new();
        one.tree(dir.path()).unwrap();
        let mut two = Archive::new();
        for name in ["a", "b", "c"] {
            let mode = fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
            two.file(name, mode, name.as_bytes()).unwrap();
        }
        assert_eq!(one.finish(), two.finish());
    }
}
