//! [`SharedRings`]: the rings of one connection, in memory that only this process and the server map
//! ([`SharedMemory`]).
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

/// Memory that a server shares, sealed to its size: a server that truncated it would kill this process by
/// SIGBUS at the next access.
pub struct SharedMemory {
    /// Where it is mapped.
    pub mapping: Arc<MmapRegion>,
    file: File,
    base: u64,
}

impl SharedMemory {
    /// Makes `size` bytes at guest-physical address `base`.
    ///
    /// # Errors
    /// There is no memory.
    pub fn new(name: &CStr, size: usize, base: u64) -> io::Result<Self> {
        let file = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&file, size as u64)?;
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let file = File::from(file);
        let mapping = MmapRegion::from_file(FileOffset::new(file.try_clone()?, 0), size);
        Ok(Self {
            mapping: Arc::new(mapping.map_err(io::Error::other)?),
            file,
            base,
        })
    }

    /// Returns its entry of a memory table.
    pub fn region(&self) -> VhostUserMemoryRegionInfo {
        VhostUserMemoryRegionInfo {
            guest_phys_addr: self.base,
            memory_size: self.mapping.size() as u64,
            userspace_addr: self.mapping.as_ptr().addr() as u64,
            mmap_offset: 0,
            mmap_handle: self.file.as_raw_fd(),
        }
    }
}

/// The rings of one connection.
pub struct SharedRings {
    /// Where they are.
    pub memory: SharedMemory,
    /// By number.
    pub rings: Vec<DriverRing>,
}

impl SharedRings {
    /// Makes `count` rings.
    ///
    /// # Errors
    /// There is no memory.
    pub fn new(count: u16, event_idx: bool) -> io::Result<Self> {
        let count = usize::from(count);
        let memory = SharedMemory::new(c"ringd rings", ring::BYTES * count, BASE)?;
        let rings = (0..count).map(|number| {
            let offset = ring::BYTES * number;
            DriverRing::new(&memory.mapping, offset, BASE + offset as u64, event_idx)
                .map_err(io::Error::other)
        });
        Ok(Self {
            rings: rings.collect::<Result<_, _>>()?,
            memory,
        })
    }

    /// Returns the addresses of a ring's areas, in this process's address space, as the protocol requires.
    pub fn addresses(&self, number: usize) -> VringConfigData {
        let start = self.memory.mapping.as_ptr().addr() + ring::BYTES * number;
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
