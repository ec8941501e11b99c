//! [`FrontMemory`]: the memory that a front end shares, mapped, by guest-physical and by the front end's
//! addresses.

use std::fs::File;
use std::sync::Arc;

use ringvirtio::GuestRam;
use ringvirtio::memory::ForeignPart;
use vhost::vhost_user::message::VhostUserMemoryRegion;
use vm_memory::{FileOffset, GuestAddress, MmapRegion};

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
    pub fn map(table: &[VhostUserMemoryRegion], files: Vec<File>) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut regions = Vec::new();
        for (region, file) in table.iter().zip(files) {
            // Copied, because the fields are packed.
            let (guest, size) = (region.guest_phys_addr, region.memory_size);
            let (user, offset) = (region.user_addr, region.mmap_offset);
            let region = format!("region of {size:#x} bytes at {guest:#x}");
            let all = offset.checked_add(size).and_then(|all| usize::try_from(all).ok());
            let (Some(all), Some(_), Ok(at)) = (all, user.checked_add(size), usize::try_from(offset)) else {
                return Err(format!(
                    "{region}, offset {offset:#x}: expected one that does not wrap"
                ));
            };
            // From the file's start: huge pages cannot be mapped at every offset.
            let mapping = MmapRegion::from_file(FileOffset::new(file, 0), all)
                .map_err(|error| format!("{region}: cannot map its file: {error}"))?;
            parts.push(ForeignPart {
                start: GuestAddress(guest),
                len: all - at,
                mapping: Arc::new(mapping),
                offset: at,
            });
            regions.push(Region { user, guest, size });
        }
        Ok(Self {
            ram: GuestRam::foreign(parts).map_err(|error| error.to_string())?,
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
