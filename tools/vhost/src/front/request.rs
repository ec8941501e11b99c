//! [`Operation`]: an engine's operation, as one or more requests to a server.

use ringblk::engine::{IoKind, IoOp};
use ringblk::virtio::SECTOR_SIZE;
use ringvirtio::GuestRam;
use ringvirtio::memory::IoVec;

use super::connect::DiskInfo;
use super::ring::Request;

/// Most bytes of one request; the rest of an operation follows in others.
const TRANSFER_MAX: u64 = 4 << 20;
/// `VIRTIO_BLK_S_OK` (virtio 1.2, 5.2.6).
const OK: u8 = 0;
/// `VIRTIO_BLK_S_UNSUPP`.
const UNSUPP: u8 = 2;

/// An operation that has not completed.
pub struct Operation {
    pub op: IoOp,
    /// Where its next request begins.
    offset: u64,
    /// Bytes of its request in flight.
    requested: u64,
    /// Its data is written, and only has to be made durable.
    pub written: bool,
}

impl Operation {
    pub fn new(op: IoOp) -> Self {
        Self {
            offset: op.offset,
            op,
            requested: 0,
            written: false,
        }
    }

    /// Makes its next request, with the buffers' guest-physical addresses in `parts`.
    ///
    /// # Errors
    /// The result of the operation, if it completes without another request.
    pub fn next_request(
        &mut self,
        info: &DiskInfo,
        ram: &GuestRam,
        parts: &mut Vec<(u64, u32)>,
    ) -> Result<Request, i32> {
        let op = &self.op;
        let left = op.offset.saturating_add(op.len).saturating_sub(self.offset);
        let piece = |most: u64| left.min(most - most % SECTOR_SIZE);
        match op.kind {
            IoKind::Sync if info.flush => Ok(Request::Flush),
            // The server has no cache.
            IoKind::Sync => Err(0),
            IoKind::WriteDurable if self.written => Ok(Request::Flush),
            IoKind::Discard if info.discard < SECTOR_SIZE => Err(-libc::EOPNOTSUPP),
            IoKind::Discard => {
                self.requested = piece(info.discard);
                Ok(Request::Discard {
                    offset: self.offset,
                    len: self.requested,
                })
            }
            IoKind::WriteZeroes { .. } if info.write_zeroes < SECTOR_SIZE => Err(-libc::EOPNOTSUPP),
            IoKind::WriteZeroes { unmap } => {
                self.requested = piece(info.write_zeroes);
                Ok(Request::WriteZeroes {
                    offset: self.offset,
                    len: self.requested,
                    unmap,
                })
            }
            IoKind::Read | IoKind::Write | IoKind::WriteDurable => {
                // SAFETY: it has not completed, so its list is valid by the contract of `Engine::push`.
                let list = unsafe { op.parts() };
                self.requested = gather(list, info, ram, parts)?;
                let offset = op.offset;
                Ok(match op.kind {
                    IoKind::Read => Request::Read { offset },
                    _ => Request::Write { offset },
                })
            }
        }
    }

    /// Handles the completion of its request with this status.
    /// `cached`: the server has a cache. Returns the result of the operation; `None` if it needs another
    /// request.
    pub fn complete_request(&mut self, status: u8, cached: bool) -> Option<i32> {
        match status {
            OK => {}
            UNSUPP => return Some(-libc::EOPNOTSUPP),
            _ => return Some(-libc::EIO),
        }
        let kind = self.op.kind;
        if !kind.is_transfer() && kind != IoKind::Sync {
            self.offset += self.requested;
            let more = self.offset < self.op.offset.saturating_add(self.op.len);
            return (!more).then_some(0);
        }
        if kind == IoKind::WriteDurable && cached && !self.written {
            self.written = true;
            return None;
        }
        Some(i32::try_from(self.requested).unwrap_or(i32::MAX))
    }
}

/// Collects as much of a list as one request takes, in whole blocks, at guest-physical addresses. Returns the
/// bytes.
fn gather(list: &[IoVec], info: &DiskInfo, ram: &GuestRam, parts: &mut Vec<(u64, u32)>) -> Result<u64, i32> {
    let block = u64::from(info.block_size);
    let mut total = 0;
    for part in list {
        // A buffer that held only the header or the status byte is empty, and servers refuse empty buffers.
        if part.is_empty() {
            continue;
        }
        let room = TRANSFER_MAX - total;
        if room == 0 || parts.len() == info.segments {
            break;
        }
        let len = (part.len() as u64).min(room);
        let addr = ram.guest_address(part).ok_or(-libc::EFAULT)?;
        // At most `TRANSFER_MAX`.
        parts.push((addr, len as u32));
        total += len;
    }
    let mut excess = total % block;
    total -= excess;
    while excess > 0 {
        let Some((_, len)) = parts.last_mut() else {
            break;
        };
        let cut = excess.min(u64::from(*len));
        *len -= cut as u32;
        excess -= cut;
        if *len == 0 {
            parts.pop();
        }
    }
    if total == 0 {
        return Err(-libc::EIO);
    }
    Ok(total)
}
