//! A board's description, `platform/<board>/board.toml`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;

/// How a board is started.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Board {
    /// QEMU's `-M`.
    pub machine: String,
    /// What is added to `machine` for a start in EL2.
    pub el2: String,
    /// QEMU's `-cpu`.
    pub cpu: String,
    /// QEMU's `-smp`.
    pub smp: u32,
    /// QEMU's `-m`.
    pub mem: String,
    /// QEMU's program.
    pub program: String,
    /// Physical addresses.
    pub load: Load,
    /// Command lines.
    pub bootargs: Bootargs,
    /// How root's memory is used.
    pub memory: Memory,
    /// Where the description and the zone files are.
    #[serde(skip)]
    pub dir: PathBuf,
}

/// Physical addresses of what is loaded.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Load {
    /// Where QEMU puts the hypervisor's image.
    pub hypervisor: u64,
    /// Root's kernel.
    pub kernel: u64,
    /// Root's initramfs.
    pub initramfs: u64,
}

/// Command lines.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bootargs {
    /// The hypervisor's.
    pub hypervisor: String,
    /// Root's kernel's.
    pub root: String,
}

/// How root's memory is used.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// Share of root's memory that is set aside as huge pages, in percent.
    pub huge_percent: u32,
}

impl Board {
    /// Reads the description of the board `name`.
    ///
    /// # Errors
    /// The file is missing or wrong.
    pub fn read(project: &Path, name: &str) -> Result<Self> {
        let dir = project.join("platform").join(name);
        let path = dir.join("board.toml");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut board: Self = toml::from_str(&text).with_context(|| format!("in {}", path.display()))?;
        board.dir = dir;
        Ok(board)
    }

    /// The zone files of the board, in name order.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn zone_files(&self) -> Result<Vec<PathBuf>> {
        let dir = self.dir.join("zones");
        let mut files: Vec<PathBuf> = fs::read_dir(&dir)
            .with_context(|| format!("cannot read {}", dir.display()))?
            .flatten()
            .map(|e| e.path())
            .filter(|p| p.extension().is_some_and(|e| e == "toml"))
            .collect();
        files.sort();
        Ok(files)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn project() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
    }

    #[test]
    fn the_shipped_board_is_valid() {
        let board = Board::read(&project(), "qemu-virt").unwrap();
        assert_eq!(
            board.load.kernel % (2 << 20),
            0,
            "a kernel Image must lie on a 2 MiB boundary"
        );
        assert!(board.load.hypervisor < board.load.kernel && board.load.kernel < board.load.initramfs);
        assert!(
            board
                .zone_files()
                .unwrap()
                .iter()
                .any(|f| f.ends_with("linux.toml"))
        );
    }

    #[test]
    fn an_unknown_key_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let board = dir.path().join("platform/x");
        fs::create_dir_all(&board).unwrap();
        let text = fs::read_to_string(project().join("platform/qemu-virt/board.toml")).unwrap();
        fs::write(board.join("board.toml"), format!("colour = \"red\"\n{text}")).unwrap();
        let error = format!("{:#}", Board::read(dir.path(), "x").unwrap_err());
        assert!(
            error.contains("colour") && error.contains("board.toml"),
            "{error}"
        );
    }
}
