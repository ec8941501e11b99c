//! A board's description, `platform/<board>/board.toml`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// The board that is used when none is named: a link in `platform/`.
const DEFAULT: &str = "default";

/// A board as data.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Board {
    /// How QEMU is started.
    pub qemu: Qemu,
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

/// How QEMU is started as this board.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Qemu {
    /// The program.
    pub program: String,
    /// `-M`.
    pub machine: String,
    /// More properties of `machine`, for a start at EL2; empty where the machine always has EL2.
    pub el2: String,
    /// `-cpu`.
    pub cpu: String,
    /// `-smp`.
    pub smp: u32,
    /// `-m`.
    pub mem: String,
    /// The device model of a disk (`-device`).
    pub disk: String,
    /// That of root's network device, for `make run`.
    pub net: String,
    /// How root's kernel and initramfs become boot modules.
    pub modules: Modules,
}

/// How root's kernel and initramfs get into RAM and into the device tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Modules {
    /// QEMU's `guest-loader` does both.
    GuestLoader,
    /// For machines that place their device tree before `guest-loader` adds to it: `loader` fills RAM, and
    /// the machine's own tree, dumped and completed, is passed by `-dtb`.
    DeviceTree,
}

/// Physical addresses of what is loaded.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Load {
    /// The hypervisor binary: its symbols are at offsets from here.
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
    /// That of root's kernel.
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
    /// Reads the description of the board `name`, a folder below `platform/`, or of the default one.
    ///
    /// # Errors
    /// There is no such board, or its description is wrong.
    pub fn read(project: &Path, name: Option<&str>) -> Result<Self> {
        let name = name.unwrap_or(DEFAULT);
        let platform = project.join("platform");
        let dir = platform.join(name);
        let path = dir.join("board.toml");
        if name.contains('/') || !path.is_file() {
            bail!("BOARD={name}: expected one of {}", names(&platform)?.join(", "));
        }
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut board: Self = toml::from_str(&text).with_context(|| format!("in {}", path.display()))?;
        board.dir = dir;
        Ok(board)
    }

    /// Returns the board's zone files in name order.
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

/// Returns the names of all boards, in order.
///
/// # Errors
/// The directory cannot be read.
pub fn names(platform: &Path) -> Result<Vec<String>> {
    let mut names: Vec<String> = fs::read_dir(platform)
        .with_context(|| format!("cannot read {}", platform.display()))?
        .flatten()
        .filter(|entry| entry.path().join("board.toml").is_file())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name != DEFAULT)
        .collect();
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use super::{Board, names};

    fn project() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
    }

    #[test]
    fn the_shipped_boards_are_valid() {
        let boards = names(&project().join("platform")).unwrap();
        assert!(boards.len() > 1, "{boards:?}");
        for name in boards.iter().map(|name| Some(name.as_str())).chain([None]) {
            let board = Board::read(&project(), name).unwrap();
            assert_eq!(
                board.load.kernel % (2 << 20),
                0,
                "{name:?}: a kernel Image must lie on a 2 MiB boundary"
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
    }

    #[test]
    fn an_unknown_board_is_answered_with_the_known_ones() {
        for name in ["vax", "../platform/default", ""] {
            let error = format!("{:#}", Board::read(&project(), Some(name)).unwrap_err());
            let known = names(&project().join("platform")).unwrap();
            assert!(error.contains(&format!("BOARD={name}:")), "{error}");
            assert!(known.iter().all(|board| error.contains(board)), "{error}");
        }
    }

    #[test]
    fn an_unknown_key_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let board = dir.path().join("platform/x");
        fs::create_dir_all(&board).unwrap();
        let shipped = Board::read(&project(), None).unwrap().dir.join("board.toml");
        let text = fs::read_to_string(shipped).unwrap();
        fs::write(board.join("board.toml"), format!("colour = \"red\"\n{text}")).unwrap();
        let error = format!("{:#}", Board::read(dir.path(), Some("x")).unwrap_err());
        assert!(
            error.contains("colour") && error.contains("board.toml"),
            "{error}"
        );
    }
}
