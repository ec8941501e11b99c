//! I/O on the calling thread, without an engine: what migration does with source and target.

use std::io;

use ringvirtio::memory::IoVec;

use super::handle::Disk;
use crate::image::bounce::scatter;
use crate::image::operation::{BlockingIo, IoKind};
use crate::virtio::SECTOR_SIZE;

/// Most interruptions of one transfer by signals before the error is returned.
const INTERRUPTIONS_MAX: usize = 100;

impl Disk {
    /// Runs an operation on the calling thread to its end.
    ///
    /// # Errors
    /// The system's error.
    pub fn run_blocking(&self, what: BlockingIo<'_>, offset: u64) -> io::Result<()> {
        if let Some(remote) = self.remote() {
            return remote.run_blocking(what, offset);
        }
        let (kind, len) = match what {
            BlockingIo::Read(bytes) => return self.transfer_all(IoKind::Read, IoVec::of(bytes), offset),
            BlockingIo::Write(bytes, durable) => {
                let kind = if durable {
                    IoKind::WriteDurable
                } else {
                    IoKind::Write
                };
                return self.transfer_all(kind, IoVec::reading(bytes), offset);
            }
            BlockingIo::Sync => (IoKind::Sync, 0),
            BlockingIo::Zero { len, unmap } => (IoKind::WriteZeroes { unmap }, len),
            BlockingIo::Discard { len } => (IoKind::Discard, len),
        };
        // SAFETY: there are no buffers.
        unsafe { self.backing().run(kind, &[], offset, len) }.map(drop)
    }

    fn transfer_all(&self, kind: IoKind, bytes: IoVec, offset: u64) -> io::Result<()> {
        let (mut rest, mut offset) = (bytes, offset);
        let mut interruptions = 0;
        while !rest.is_empty() {
            let len = rest.len() as u64;
            // SAFETY: part of a slice that the caller has borrowed, mutably if it is written to.
            match unsafe { self.backing().run(kind, &[rest], offset, len) } {
                Ok(0) if kind == IoKind::Read && self.is_missing_tail(offset, len) => {
                    // SAFETY: as above.
                    unsafe { scatter(&[0; SECTOR_SIZE as usize], &[rest], 0) };
                    return Ok(());
                }
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(transferred) => {
                    rest = rest.behind(transferred);
                    offset += transferred as u64;
                }
                Err(error)
                    if error.kind() == io::ErrorKind::Interrupted && interruptions < INTERRUPTIONS_MAX =>
                {
                    interruptions += 1;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
