//! [`SharedRings`]: the rings of one connection, in memory that nobody but this process and the server has.
//!
//! Each connection gets new memory: a server whose connection has ended may still have the old one mapped.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use vhost::{VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{FileOffset, MmapRegion};

use super::ring::{self, DriverRing};

/// Where the server is told that our memory is, guest-physical: above any guest's RAM.
const BASE: u64 = 1 << 46;

/// Memory that a server may have: it can be written, and is of this size for good. A server that could make it shorter
/// would end us, by SIGBUS, when we look at it next.
///
/// # Errors
/// There is no memory.
pub(super) fn sealed(name: &CStr, size: u64) -> io::Result<File> {
    let file = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&file, size)?;
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(file.into())
}

/// The rings of one connection.
pub struct SharedRings {
    mapping: Arc<MmapRegion>,
    file: File,
    /// By number.
    pub rings: Vec<DriverRing>,
}

impl SharedRings {
    /// So many rings.
    ///
    /// # Errors
    /// There is no memory.
    pub fn new(count: u16, event_idx: bool) -> io::Result<Self> {
        let size = ring::BYTES * usize::from(count);
        let file = sealed(c"ringd rings", size as u64)?;
        let mapping = MmapRegion::from_file(FileOffset::new(file.try_clone()?, 0), size);
        let mapping = Arc::new(mapping.map_err(io::Error::other)?);
        let rings = (0..usize::from(count)).map(|number| {
            let offset = ring::BYTES * number;
            DriverRing::new(&mapping, offset, BASE + offset as u64, event_idx).map_err(io::Error::other)
        });
        Ok(Self {
            rings: rings.collect::<Result<_, _>>()?,
            mapping,
            file,
        })
    }

    /// The memory, for a memory table.
    #[must_use]
    pub fn region(&self) -> VhostUserMemoryRegionInfo {
        VhostUserMemoryRegionInfo {
            guest_phys_addr: BASE,
            memory_size: self.mapping.size() as u64,
            userspace_addr: self.mapping.as_ptr().addr() as u64,
            mmap_offset: 0,
            mmap_handle: self.file.as_raw_fd(),
        }
    }

    /// Where the areas of a ring are, for its set-up: at our own addresses.
    #[must_use]
    pub fn addresses(&self, number: usize) -> VringConfigData {
        let start = self.mapping.as_ptr().addr() + ring::BYTES * number;
        let [desc, avail, used] = DriverRing::areas().map(|offset| (start + offset) as u64);
        VringConfigData {
            queue_max_size: ring::SIZE,
            queue_size: ring::SIZE,
            flags: 0,
            desc_table_addr: desc,
            used_ring_addr: used,
            avail_ring_addr: avail,
            log_addr: None,
        }
    }
}
