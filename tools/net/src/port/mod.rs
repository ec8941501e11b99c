//! [`Port`]: where a device's packets go and come from.
//!
//! A packet is a `virtio_net_hdr` of [`HEADER`] bytes and an Ethernet frame, in guest RAM: ports transfer it
//! straight from and to there. No call blocks.

#[cfg(any(test, feature = "fakes"))]
pub mod fake;
pub mod stream;
mod sys;
pub mod tap;

use std::io;
use std::os::fd::RawFd;

use ringvirtio::memory::IoVec;

use crate::offloads::Offloads;

/// Bytes of `struct virtio_net_hdr` with VERSION_1: `num_buffers` is there, whatever was negotiated
/// (5.1.6.1).
pub const HEADER: usize = 12;
/// Most parts of a transfer that the kernel takes (`UIO_MAXIOV`).
pub const PARTS_MAX: usize = 1024;

/// The back end of a device, open. Calls for one pair of queues come from one thread at a time.
pub trait Port: Send + Sync {
    /// Returns the offloads that it has.
    fn offloads(&self) -> Offloads;

    /// Returns how many pairs of queues it serves.
    fn pairs(&self) -> u16;

    /// Returns the descriptor to poll for a pair.
    fn fd(&self, pair: u16) -> Option<RawFd>;

    /// Whether the headers of received packets are its own. Otherwise [`Self::receive`] leaves their place
    /// unwritten.
    fn has_header(&self) -> bool;

    /// Receives one packet. Returns its length with the header; `WouldBlock` if there is none. What does not
    /// fit is lost.
    ///
    /// # Errors
    /// The system's. Anything but `WouldBlock`: the port is of no use any more.
    ///
    /// # Safety
    /// The buffers are valid, and at least [`HEADER`] bytes.
    unsafe fn receive(&self, pair: u16, room: &[IoVec]) -> io::Result<usize>;

    /// Sends one packet, all of it or nothing. `WouldBlock`: there is no room now.
    ///
    /// # Errors
    /// The system's: the packet is dropped.
    ///
    /// # Safety
    /// The buffers are valid, and at least [`HEADER`] bytes.
    unsafe fn send(&self, pair: u16, packet: &[IoVec]) -> io::Result<()>;

    /// Sets which packets it may give: those that need no more than these feature bits of
    /// [`crate::offloads::GUEST`].
    ///
    /// # Errors
    /// The system's.
    fn set_guest_offloads(&self, guest: u64) -> io::Result<()>;

    /// Distributes received packets among the first `count` pairs from now on.
    ///
    /// # Errors
    /// The system's.
    fn set_active_pairs(&self, count: u16) -> io::Result<()>;
}

/// Copies bytes at `offset` of the parts into `to`. Returns how many there were.
///
/// # Safety
/// The parts are valid.
pub(crate) unsafe fn copy_out(parts: &[IoVec], offset: usize, to: &mut [u8]) -> usize {
    let mut copied = 0;
    for part in behind(parts, offset) {
        for index in 0..part.len() {
            let Some(byte) = to.get_mut(copied) else {
                return copied;
            };
            // SAFETY: the caller guarantees it. Volatile: the guest may write at the same time.
            *byte = unsafe { part.as_ptr().add(index).read_volatile() };
            copied += 1;
        }
    }
    copied
}

/// Copies `from` to `offset` of the parts. Returns how many bytes fit.
///
/// # Safety
/// The parts are valid.
pub(crate) unsafe fn copy_in(parts: &[IoVec], offset: usize, from: &[u8]) -> usize {
    let mut copied = 0;
    for part in behind(parts, offset) {
        for index in 0..part.len() {
            let Some(byte) = from.get(copied) else {
                return copied;
            };
            // SAFETY: as above.
            unsafe { part.as_ptr().add(index).write_volatile(*byte) };
            copied += 1;
        }
    }
    copied
}

/// Returns the parts without their first `offset` bytes.
pub(crate) fn behind(parts: &[IoVec], offset: usize) -> impl Iterator<Item = IoVec> {
    let mut skip = offset;
    parts.iter().filter_map(move |part| {
        let here = skip.min(part.len());
        skip -= here;
        (here < part.len()).then(|| part.behind(here))
    })
}

#[cfg(test)]
mod tests {
    use ringvirtio::memory::IoVec;

    use super::{behind, copy_in, copy_out};

    #[test]
    fn bytes_across_parts() {
        let (mut first, mut second, mut third) = ([0_u8; 3], [0_u8; 1], [0_u8; 4]);
        let parts = [&mut first[..], &mut second, &mut third].map(IoVec::of);
        // SAFETY: the arrays outlive the calls.
        unsafe {
            assert_eq!(copy_in(&parts, 2, &[1, 2, 3]), 3);
            assert_eq!(copy_in(&parts, 7, &[9, 9]), 1);
            let mut bytes = [0xff; 10];
            assert_eq!(copy_out(&parts, 1, &mut bytes), 7);
            assert_eq!(bytes, [0, 1, 2, 3, 0, 0, 9, 0xff, 0xff, 0xff]);
        }
        let lengths = |offset| behind(&parts, offset).map(|part| part.len()).collect::<Vec<_>>();
        assert_eq!(
            (lengths(0), lengths(3), lengths(5)),
            (vec![3, 1, 4], vec![1, 4], vec![3])
        );
        assert!(lengths(8).is_empty());
    }
}
