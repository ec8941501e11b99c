//! [`Buffers`]: a request's data in guest RAM, as a list of `iovec`s for the kernel, with a cursor.
//!
//! Made by [`crate::chain`], consumed by the device and the kernel.

use std::ptr::NonNull;
use std::sync::Arc;

use vm_memory::GuestAddress;

use crate::memory::{GuestRam, IoVec, MemoryError};

/// A list of guest buffers with a cursor at its front: what is left to transfer.
///
/// The list's storage is kept between requests, so that the steady state allocates nothing. Every range was
/// checked when it was added, and the list keeps the RAM mapped.
pub struct Buffers {
    ram: Arc<GuestRam>,
    iov: Vec<IoVec>,
    first: usize,
    total: u64,
    last: Option<NonNull<u8>>,
}

// SAFETY: the pointers name memory that `ram` keeps mapped; they are dereferenced volatile, here, or by the
// kernel.
unsafe impl Send for Buffers {}

impl Buffers {
    /// Returns an empty list of buffers in a guest's RAM.
    pub fn new(ram: Arc<GuestRam>) -> Self {
        Self {
            ram,
            iov: Vec::new(),
            first: 0,
            total: 0,
            last: None,
        }
    }

    /// Empties the list.
    #[inline]
    pub fn clear(&mut self) {
        self.iov.clear();
        self.first = 0;
        self.total = 0;
        self.last = None;
    }

    /// Appends `len` bytes at guest-physical `addr`: one entry, or more across extents.
    ///
    /// # Errors
    /// They are not RAM; the list is unchanged.
    pub fn push(&mut self, addr: GuestAddress, len: u32) -> Result<(), MemoryError> {
        let before = self.iov.len();
        let outside = MemoryError::NotRam {
            addr: addr.0,
            len: len.into(),
        };
        let (mut addr, mut rest) = (addr.0, u64::from(len));
        while rest > 0 {
            let Some((host, room)) = self.ram.resolve(addr) else {
                self.iov.truncate(before);
                return Err(outside);
            };
            let now = rest.min(room);
            // `now` is at most `len`, so it fits.
            self.iov.push(IoVec(libc::iovec {
                iov_base: host.cast(),
                iov_len: now as usize,
            }));
            rest -= now;
            let Some(next) = addr.checked_add(now).or((rest == 0).then_some(0)) else {
                self.iov.truncate(before);
                return Err(outside);
            };
            addr = next;
        }
        self.total += u64::from(len);
        Ok(())
    }

    /// Returns the number of bytes left.
    #[inline]
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Returns what is left, as the kernel takes it.
    #[inline]
    pub fn remaining(&self) -> &[IoVec] {
        self.iov.get(self.first..).unwrap_or_default()
    }

    /// Drops `count` bytes at the front, or all if there are fewer.
    #[inline]
    pub fn advance(&mut self, count: u64) {
        let mut rest = count.min(self.total);
        self.total -= rest;
        while let Some(front) = self.iov.get_mut(self.first) {
            let len = front.0.iov_len as u64;
            if len > rest {
                front.0.iov_base = front.as_ptr().wrapping_add(rest as usize).cast();
                front.0.iov_len -= rest as usize;
                return;
            }
            rest -= len;
            self.first += 1;
        }
    }

    /// Copies bytes from the front into `to`, each read exactly once, and drops them. Returns `false` if
    /// there are too few.
    #[inline]
    #[must_use]
    pub fn take_front(&mut self, to: &mut [u8]) -> bool {
        if self.total < to.len() as u64 {
            return false;
        }
        let mut copied = 0;
        for part in self.remaining() {
            for index in 0..part.len() {
                let Some(byte) = to.get_mut(copied) else { break };
                // SAFETY: `index` is inside of a range that was checked to be mapped guest RAM.
                *byte = unsafe { part.as_ptr().add(index).read_volatile() };
                copied += 1;
            }
        }
        self.advance(copied as u64);
        true
    }

    /// Copies `from` to the front and drops what was written. Returns how many bytes fit.
    pub fn write_front(&mut self, from: &[u8]) -> usize {
        let mut copied = 0;
        for part in self.remaining() {
            for index in 0..part.len() {
                let Some(byte) = from.get(copied) else { break };
                // SAFETY: as in `take_front`.
                unsafe { part.as_ptr().add(index).write_volatile(*byte) };
                copied += 1;
            }
        }
        self.advance(copied as u64);
        copied
    }

    /// Takes the last byte off the list, for [`Self::store_last`]. Returns `false` if there is none.
    #[inline]
    #[must_use]
    pub fn take_last(&mut self) -> bool {
        let Some(part) = self
            .iov
            .iter_mut()
            .skip(self.first)
            .rev()
            .find(|part| part.0.iov_len > 0)
        else {
            return false;
        };
        part.0.iov_len -= 1;
        self.total -= 1;
        self.last = NonNull::new(part.as_ptr().wrapping_add(part.0.iov_len));
        // A status byte in a buffer of its own, as most drivers have it, leaves an empty one behind.
        while self.remaining().last().is_some_and(IoVec::is_empty) {
            self.iov.pop();
        }
        true
    }

    /// Stores to the byte that [`Self::take_last`] set aside, if there is one.
    #[inline]
    pub fn store_last(&mut self, value: u8) {
        if let Some(byte) = self.last {
            // SAFETY: inside of a range that was checked to be RAM, which `ram` keeps mapped.
            unsafe { byte.as_ptr().write_volatile(value) }
        }
    }
}

/// The buffers of several requests as one list for the kernel, copied from their [`Buffers`], which must live
/// as long as the list is used. Its storage is kept between uses.
#[derive(Default)]
pub struct IoList(Vec<IoVec>);

// SAFETY: the pointers are only passed to the kernel, as those of `Buffers`.
unsafe impl Send for IoList {}

impl IoList {
    /// Empties the list.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Appends what is left of a request's data.
    #[inline]
    pub fn append(&mut self, buffers: &Buffers) {
        self.0.extend_from_slice(buffers.remaining());
    }

    /// Returns all entries.
    #[inline]
    pub fn parts(&self) -> &[IoVec] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{GuestAddress, GuestMemoryMmap};

    use super::Buffers;
    use crate::memory::GuestRam;

    // With a single buffer left, a fixed buffer can be used.
    #[test]
    fn a_status_in_a_buffer_of_its_own_is_no_data() {
        let base = GuestAddress(0x4000_0000);
        let memory = GuestMemoryMmap::from_ranges(&[(base, 0x1_0000)]).unwrap();
        let mut list = Buffers::new(GuestRam::new(memory).unwrap());
        list.push(base, 4096).unwrap();
        list.push(GuestAddress(base.0 + 0x2000), 1).unwrap();
        list.push(GuestAddress(base.0 + 0x3000), 0).unwrap();
        assert!(list.take_last());
        assert_eq!((list.remaining().len(), list.total()), (1, 4096));
        // A status that shares a buffer with data leaves the data.
        assert!(list.take_last());
        assert_eq!((list.remaining().len(), list.total()), (1, 4095));
        list.clear();
        assert!(!list.take_last());
        list.push(base, 1).unwrap();
        assert!(list.take_last());
        assert!(list.remaining().is_empty() && !list.take_last());
    }
}
