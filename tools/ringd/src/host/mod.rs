//! Root Linux as the daemon uses it: its CPUs ([`cpus`]), its huge pages ([`hugepages`]), guest RAM
//! ([`ram`]) and what keeps its pages ([`pin`]).
//!
//! [`Host`] is the border: [`Linux`] is the machine, [`fake`] a model for tests. All of it needs privileges
//! and none of it is on the path of a request, so that a privileged helper can implement the trait later.

pub mod cpus;
pub mod fake;
pub mod hugepages;
pub mod pin;
pub mod ram;

use std::fmt::Display;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::regular;
pub use cpus::Cpu;
pub use ram::Ram;

/// Root Linux: the resources that a zone takes from it and returns.
pub trait Host: Send + Sync {
    /// Returns the CPUs of the machine as root sees them.
    ///
    /// # Errors
    /// sysfs cannot be read.
    fn cpus(&self) -> io::Result<Vec<Cpu>>;

    /// Takes a CPU offline or brings it online.
    ///
    /// # Errors
    /// Linux refused.
    fn set_online(&self, cpu: u32, online: bool) -> io::Result<()>;

    /// Makes a zone's RAM of huge pages, adding to root's pool what is missing.
    ///
    /// # Errors
    /// There are not enough; nothing is left.
    fn create_ram(&self, zone: &str, bytes: u64) -> Result<Ram, RamError>;

    /// Opens the RAM that an earlier daemon made for the zone.
    ///
    /// # Errors
    /// It is not there.
    fn open_ram(&self, zone: &str, bytes: u64) -> Result<Ram, RamError>;

    /// Frees a zone's RAM, and returns `added` pages from the pool to root.
    ///
    /// # Errors
    /// The file cannot be removed; that it is not there is no error.
    fn remove_ram(&self, zone: &str, added: u64) -> io::Result<()>;
}

/// Why a zone gets no RAM.
#[derive(Debug, thiserror::Error, Serialize, Deserialize)]
pub enum RamError {
    /// Not enough huge pages.
    #[error(
        "no huge pages left: {wanted} of 2 MiB are wanted, root has {free} free and could add only {added} more; give \
         the zone less memory, free some in root, or reserve them at boot with hugepages=N on root's command line"
    )]
    NoHugePages {
        /// Pages wanted.
        wanted: u64,
        /// Pages that were free.
        free: u64,
        /// Pages that root could add.
        added: u64,
    },
    /// Guest RAM cannot be mapped.
    #[error("cannot map the guest's RAM: {0}")]
    Map(String),
    /// Physical addresses are hidden.
    #[error(
        "/proc/self/pagemap does not tell physical addresses: the daemon needs CAP_SYS_ADMIN to start a zone"
    )]
    HiddenAddresses,
    /// A file cannot be used, or the broker does not answer.
    #[error("{0}")]
    Other(String),
}

impl RamError {
    /// Returns the error that guest RAM cannot be mapped.
    pub fn map(cause: impl Display) -> Self {
        Self::Map(cause.to_string())
    }

    /// Returns the error that a file cannot be used.
    fn file(path: &Path, cause: impl Display) -> Self {
        Self::Other(format!("{}: {cause}", path.display()))
    }
}

impl From<io::Error> for RamError {
    fn from(error: io::Error) -> Self {
        Self::Other(error.to_string())
    }
}

/// The file of a zone's RAM that was just made.
pub struct RamFile {
    /// The file.
    pub file: File,
    /// Physical addresses of its blocks.
    pub blocks: Vec<u64>,
    /// Huge pages that were added to the pool for it.
    pub added: u64,
    /// What keeps its pages from the pool while it is open.
    pub pins: Vec<File>,
}

/// The machine that this runs on.
pub struct Linux {
    /// `/`, or a directory in its place in tests.
    pub root: PathBuf,
    /// Directory on hugetlbfs for the daemon's files.
    pub huge: PathBuf,
    /// Held while the pool of huge pages is counted and changed.
    pool: parking_lot::Mutex<()>,
}

impl Linux {
    /// Returns the machine below `root`; finds or mounts hugetlbfs.
    ///
    /// # Errors
    /// There is no hugetlbfs with pages of 2 MiB.
    pub fn new(root: PathBuf) -> io::Result<Self> {
        let huge = hugepages::directory(&root)?;
        Ok(Self {
            root,
            huge,
            pool: parking_lot::Mutex::new(()),
        })
    }

    /// Opens or makes the 2 MiB file that holds the shared page.
    ///
    /// # Errors
    /// No huge page is left.
    pub fn shared_page(&self) -> Result<File, RamError> {
        let _pool = self.pool.lock();
        let path = self.huge.join("shared");
        let exists = path
            .metadata()
            .is_ok_and(|file| file.len() == crate::config::zone::BLOCK);
        if !exists {
            hugepages::ensure(&self.root, 1)?;
        }
        ram::open_file(&path, crate::config::zone::BLOCK, true)
    }

    /// Makes a zone's RAM.
    ///
    /// # Errors
    /// There are not enough huge pages; nothing is left.
    pub fn create_ram_file(&self, zone: &str, bytes: u64) -> Result<RamFile, RamError> {
        let _pool = self.pool.lock();
        let path = self.ram_path(zone);
        // Left by a zone of that name if all daemons died.
        let _ = std::fs::remove_file(&path);
        let added = hugepages::ensure(&self.root, bytes.div_ceil(crate::config::zone::BLOCK))?;
        let made = ram::open_file(&path, bytes, true).and_then(|file| {
            let ram = ram::map(file.try_clone()?, bytes)?;
            let pins = ram.pin()?;
            let blocks = ram
                .with_blocks(|address| ram::physical(&self.root, address))?
                .blocks;
            Ok(RamFile {
                file,
                blocks,
                added,
                pins,
            })
        });
        if made.is_err() {
            let _ = std::fs::remove_file(&path);
            let _ = hugepages::release(&self.root, added);
        }
        made
    }

    /// Opens the file of the RAM that an earlier daemon made for the zone.
    ///
    /// # Errors
    /// It is not there, of another size, or has lost pages.
    pub fn open_ram_file(&self, zone: &str, bytes: u64) -> Result<File, RamError> {
        ram::open_file(&self.ram_path(zone), bytes, false)
    }

    fn ram_path(&self, zone: &str) -> PathBuf {
        self.huge.join(format!("{zone}.ram"))
    }
}

impl Host for Linux {
    fn cpus(&self) -> io::Result<Vec<Cpu>> {
        cpus::list(&self.root)
    }

    fn set_online(&self, cpu: u32, online: bool) -> io::Result<()> {
        cpus::set_online(&self.root, cpu, online)
    }

    fn create_ram(&self, zone: &str, bytes: u64) -> Result<Ram, RamError> {
        let RamFile {
            file, blocks, added, ..
        } = self.create_ram_file(zone, bytes)?;
        let ram = ram::map(file, bytes);
        if ram.is_err() {
            let _ = self.remove_ram(zone, added);
        }
        Ok(Ram {
            blocks,
            added,
            ..ram?
        })
    }

    fn open_ram(&self, zone: &str, bytes: u64) -> Result<Ram, RamError> {
        ram::map(self.open_ram_file(zone, bytes)?, bytes)
    }

    fn remove_ram(&self, zone: &str, added: u64) -> io::Result<()> {
        let _pool = self.pool.lock();
        regular::remove(&self.ram_path(zone))?;
        hugepages::release(&self.root, added)
    }
}
