//! The in-flight region: ringblk's logs of all queues in memory that the front end keeps while no server is
//! there.
//!
//! To the front end it is opaque. Its layout is that of [`ringvirtio::inflight`], one log behind the other; a
//! server of another kind does not understand it, nor this one theirs: a region with other contents is
//! refused.

use std::fs::File;
use std::io;
use std::sync::Arc;

use ringvirtio::InflightArea;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vhost::vhost_user::message::VhostUserInflight;
use vm_memory::mmap::MmapRegionError;
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
    pub fn make(queues: u16, queue_size: u16) -> io::Result<(VhostUserInflight, File)> {
        let size = bytes(queues, queue_size);
        let file = File::from(memfd_create(c"ringd in flight", MemfdFlags::CLOEXEC)?);
        ftruncate(&file, size as u64)?;
        Ok((VhostUserInflight::new(size as u64, 0, queues, queue_size), file))
    }

    /// Maps a region that the front end has kept.
    ///
    /// # Errors
    /// It is too small, or cannot be mapped.
    pub fn map(about: &VhostUserInflight, file: File) -> Result<Self, String> {
        let (size, offset) = (about.mmap_size, about.mmap_offset);
        let (queues, queue_size) = (about.num_queues, about.queue_size);
        let expected = bytes(queues, queue_size);
        if size < expected as u64 {
            return Err(format!(
                "in-flight region of {size:#x} bytes at {offset:#x}: expected {expected:#x} for {queues} queues \
                 of {queue_size}"
            ));
        }
        let mapping = MmapRegion::from_file(FileOffset::new(file, offset), expected);
        Ok(Self {
            mapping: Arc::new(mapping.map_err(unmappable)?),
            queues,
            queue_size,
        })
    }

    /// Returns the log of a queue.
    ///
    /// # Errors
    /// The region has no log for this queue.
    pub fn area(&self, index: usize, size: u16) -> Result<InflightArea, String> {
        if index >= usize::from(self.queues) || size > self.queue_size {
            return Err(format!(
                "in-flight region: for {} queues of {}, expected a log for queue {index} of {size}",
                self.queues, self.queue_size
            ));
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
pub fn private(size: u16) -> Result<InflightArea, String> {
    let mapping = MmapRegion::new(InflightArea::bytes(size).next_multiple_of(PAGE));
    Ok(InflightArea {
        mapping: Arc::new(mapping.map_err(unmappable)?),
        offset: 0,
    })
}

fn unmappable(error: MmapRegionError) -> String {
    format!("in-flight region: cannot map it: {error}")
}
