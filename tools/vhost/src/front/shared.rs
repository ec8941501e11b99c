//! [`SharedRings`]: the rings of one connection, in memory that only this process and the server map.
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

/// Guest-physical address of our memory in the server's memory table: above any guest's RAM.
const BASE: u64 = 1 << 46;

/// Makes a file in memory for a server: writable, and sealed to this size. A server that truncated it would
/// kill this process by SIGBUS at the next access.
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
    /// Makes `count` rings.
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

    /// Returns the memory's entry of a memory table.
    pub fn region(&self) -> VhostUserMemoryRegionInfo {
        VhostUserMemoryRegionInfo {
            guest_phys_addr: BASE,
            memory_size: self.mapping.size() as u64,
            userspace_addr: self.mapping.as_ptr().addr() as u64,
            mmap_offset: 0,
            mmap_handle: self.file.as_raw_fd(),
        }
    }

    /// Returns the addresses of a ring's areas, in this process's address space, as the protocol requires.
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
