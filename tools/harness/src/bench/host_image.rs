//! The disk image of plain QEMU's guests, on the host.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Bytes of the image that is measured.
const IMAGE_BYTES: u64 = 256 << 20;

/// The image of plain QEMU's guests, in the host's tmpfs where there is one with room.
#[derive(Debug)]
pub struct HostImage {
    /// The file.
    pub file: PathBuf,
    /// Why it is somewhere else.
    pub note: Option<String>,
    /// Removed with this.
    _dir: tempfile::TempDir,
}

impl HostImage {
    /// Makes the image, below `otherwise` if the tmpfs has no room.
    ///
    /// # Errors
    /// Neither has room.
    pub fn create(otherwise: &Path) -> Result<Self> {
        match Self::create_in(Path::new("/dev/shm")) {
            Ok(image) => Ok(image),
            Err(error) => {
                let mut image = Self::create_in(otherwise)?;
                image.note = Some(format!("it is in {}: {error:#}", otherwise.display()));
                Ok(image)
            }
        }
    }

    fn create_in(parent: &Path) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("ringvisor-bench-")
            .tempdir_in(parent)
            .with_context(|| format!("cannot use {}", parent.display()))?;
        let file = dir.path().join("image");
        // All blocks there, as in root.
        let mut writer = File::create(&file)?;
        let block = vec![0; 1 << 20];
        for _ in 0..IMAGE_BYTES >> 20 {
            writer
                .write_all(&block)
                .with_context(|| format!("no room in {}", parent.display()))?;
        }
        Ok(Self {
            file,
            note: None,
            _dir: dir,
        })
    }
}
