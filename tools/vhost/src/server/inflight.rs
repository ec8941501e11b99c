//! The in-flight region: ringblk's logs of all queues in memory that the front end keeps while no server is
//! there.
//!
//! To the front end it is opaque. Its layout is that of [`ringvirtio::inflight`], one log behind the other; a
//! server of another kind does not understand it, nor this one theirs: a region with other contents is
//! refused.

use std::fs::File;
use std::sync::Arc;

use ringvirtio::InflightArea;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vhost::vhost_user::message::VhostUserInflight;
use vm_memory::{FileOffset, MmapRegion};

/// Logs start at multiples of this.
const ALIGN: usize = 64;
/// What the region's size is a multiple of.
const PAGE: usize = 4096;

/// Returns the bytes from one log to the next.
fn stride(queue_size: u16) -> usize {
    InflightArea::bytes(queue_size).next_multiple_of(ALIGN)
}

/// Returns the bytes of a region.
fn bytes(queues: u16, queue_size: u16) -> usize {
    (stride(queue_size) * usize::from(queues)).next_multiple_of(PAGE)
}

/// Why a region cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RegionError {
    /// Too small, or too large to be mapped.
    #[error(
        "in-flight region of {size:#x} bytes at {offset:#x}: expected {expected:#x} for {queues} queues of {queue_size}"
    )]
    Size {
        /// Its size in bytes.
        size: u64,
        /// Its offset in the file.
        offset: u64,
        /// Queues that it has logs for.
        queues: u16,
        /// Their size.
        queue_size: u16,
        /// Bytes that these logs take.
        expected: usize,
    },
    /// It cannot be mapped.
    #[error("in-flight region: cannot map it: {0}")]
    Map(String),
    /// There is no memory for it.
    #[error("in-flight region: cannot make one: {0}")]
    Make(#[from] rustix::io::Errno),
    /// It has no log for this queue.
    #[error(
        "in-flight region: for {queues} queues of {queue_size}, expected a log for queue {index} of {size}"
    )]
    Queue {
        /// Queues that it has logs for.
        queues: u16,
        /// Their size.
        queue_size: u16,
        /// The queue.
        index: usize,
        /// Its size.
        size: u16,
    },
}

/// A mapped region.
pub struct Region {
    mapping: Arc<MmapRegion>,
    queues: u16,
    queue_size: u16,
}

impl Region {
    /// Makes a new region, for the front end to keep.
    ///
    /// # Errors
    /// There is no memory for it.
    pub fn make(queues: u16, queue_size: u16) -> Result<(VhostUserInflight, File), RegionError> {
        let size = bytes(queues, queue_size);
        let file = File::from(memfd_create(c"ringd in flight", MemfdFlags::CLOEXEC)?);
        ftruncate(&file, size as u64)?;
        Ok((VhostUserInflight::new(size as u64, 0, queues, queue_size), file))
    }

    /// Maps a region that the front end has kept.
    ///
    /// # Errors
    /// It is too small, or cannot be mapped.
    pub fn map(about: &VhostUserInflight, file: File) -> Result<Self, RegionError> {
        let (size, offset) = (about.mmap_size, about.mmap_offset);
        let (queues, queue_size) = (about.num_queues, about.queue_size);
        let expected = bytes(queues, queue_size);
        let wrong = RegionError::Size {
            size,
            offset,
            queues,
            queue_size,
            expected,
        };
        if size < expected as u64 {
            return Err(wrong);
        }
        let mapping = MmapRegion::from_file(FileOffset::new(file, offset), expected);
        Ok(Self {
            mapping: Arc::new(mapping.map_err(|error| RegionError::Map(error.to_string()))?),
            queues,
            queue_size,
        })
    }

    /// Returns the log of a queue.
    ///
    /// # Errors
    /// The region has no log for this queue.
    pub fn area(&self, index: usize, size: u16) -> Result<InflightArea, RegionError> {
        if index >= usize::from(self.queues) || size > self.queue_size {
            return Err(RegionError::Queue {
                queues: self.queues,
                queue_size: self.queue_size,
                index,
                size,
            });
        }
        Ok(InflightArea {
            mapping: self.mapping.clone(),
            offset: index * stride(self.queue_size),
        })
    }
}

/// Makes a log for one queue that ends with this process.
///
/// # Errors
/// There is no memory for it.
pub fn private(size: u16) -> Result<InflightArea, RegionError> {
    let mapping = MmapRegion::new(InflightArea::bytes(size).next_multiple_of(PAGE));
    Ok(InflightArea {
        mapping: Arc::new(mapping.map_err(|error| RegionError::Map(error.to_string()))?),
        offset: 0,
    })
}
