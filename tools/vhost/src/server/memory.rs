//! [`FrontMemory`]: the memory that a front end shares, mapped, by guest-physical and by the front end's
//! addresses.

use std::fs::File;
use std::sync::Arc;

use ringvirtio::GuestRam;
use ringvirtio::memory::{ForeignPart, MemoryError};
use vhost::vhost_user::message::VhostUserMemoryRegion;
use vm_memory::{FileOffset, GuestAddress, MmapRegion};

/// Why memory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FrontMemoryError {
    /// A region wraps around the address space.
    #[error("region of {size:#x} bytes at {guest:#x}, offset {offset:#x}: expected one that does not wrap")]
    Wraps {
        /// Guest-physical start.
        guest: u64,
        /// Bytes.
        size: u64,
        /// Offset in its file.
        offset: u64,
    },
    /// A region's file cannot be mapped that far.
    #[error("region of {size:#x} bytes at {guest:#x}: cannot map its file: {cause}")]
    Map {
        /// Guest-physical start.
        guest: u64,
        /// Bytes.
        size: u64,
        /// The reason.
        cause: String,
    },
    /// The regions cannot be a guest's RAM.
    #[error(transparent)]
    Ram(#[from] MemoryError),
}

struct Region {
    user: u64,
    guest: u64,
    size: u64,
}

/// A front end's memory.
pub struct FrontMemory {
    ram: Arc<GuestRam>,
    regions: Vec<Region>,
}

impl FrontMemory {
    /// Maps the regions of a memory table.
    ///
    /// # Errors
    /// One of them is wrong, or cannot be mapped.
    pub fn map(table: &[VhostUserMemoryRegion], files: Vec<File>) -> Result<Self, FrontMemoryError> {
        let mut parts = Vec::new();
        let mut regions = Vec::new();
        for (region, file) in table.iter().zip(files) {
            // Copied, because the fields are packed.
            let (guest, size) = (region.guest_phys_addr, region.memory_size);
            let (user, offset) = (region.user_addr, region.mmap_offset);
            let wraps = FrontMemoryError::Wraps { guest, size, offset };
            let all = offset.checked_add(size).and_then(|all| usize::try_from(all).ok());
            let (Some(all), Some(_), Ok(at)) = (all, user.checked_add(size), usize::try_from(offset)) else {
                return Err(wraps);
            };
            // From the file's start: huge pages cannot be mapped at every offset.
            let mapping = MmapRegion::from_file(FileOffset::new(file, 0), all).map_err(|error| {
                FrontMemoryError::Map {
                    guest,
                    size,
                    cause: error.to_string(),
                }
            })?;
            parts.push(ForeignPart {
                start: GuestAddress(guest),
                len: all - at,
                mapping: Arc::new(mapping),
                offset: at,
            });
            regions.push(Region { user, guest, size });
        }
        Ok(Self {
            ram: GuestRam::foreign(parts)?,
            regions,
        })
    }

    /// Returns the memory as the device sees it.
    pub fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    /// Returns the guest-physical address of the front end's address `user`.
    pub fn guest_address(&self, user: u64) -> Option<GuestAddress> {
        self.regions.iter().find_map(|region| {
            let offset = user.checked_sub(region.user)?;
            (offset < region.size).then(|| GuestAddress(region.guest.wrapping_add(offset)))
        })
    }
}
