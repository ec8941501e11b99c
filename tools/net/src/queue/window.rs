//! [`Window`]: the driver's buffers that the next packet is received into.
//!
//! A packet's length is known only when it was received, so the window has room for the largest one if the
//! driver has made as many buffers available; what does not fit goes to a spill buffer behind it. What a
//! packet does not use stays for the next. Heads in the window are popped: the in-flight log has them, and
//! the next daemon begins with them.

use std::collections::VecDeque;
use std::sync::Arc;

use ringvirtio::GuestRam;
use ringvirtio::buffers::Buffers;
use ringvirtio::memory::IoVec;

use crate::port::{PARTS_MAX, copy_in, copy_out};

/// Parts that the window may have, beside the spill buffer.
const PARTS: usize = PARTS_MAX - 2;

/// A buffer of the driver.
struct Slot {
    head: u16,
    buffers: Buffers,
}

/// See the module.
pub struct Window {
    ram: Arc<GuestRam>,
    slots: VecDeque<Slot>,
    /// Buffers whose storage is used again.
    spare: Vec<Buffers>,
    /// The window as the kernel takes it, and the spill buffer.
    parts: Vec<IoVec>,
    /// Bytes of the window.
    room: usize,
    spill: Box<[u8]>,
}

// SAFETY: the pointers in `parts` name guest memory that the slots keep mapped, and `spill`.
unsafe impl Send for Window {}

impl Window {
    /// Returns an empty window; packets have `packet_max` bytes at most.
    pub fn new(ram: &Arc<GuestRam>, packet_max: usize) -> Self {
        Self {
            ram: ram.clone(),
            slots: VecDeque::new(),
            spare: Vec::new(),
            parts: Vec::new(),
            room: 0,
            spill: vec![0; packet_max].into_boxed_slice(),
        }
    }

    /// Returns how many buffers are in it.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Returns its bytes.
    pub const fn room(&self) -> usize {
        self.room
    }

    /// Returns whether the kernel would take no more parts.
    pub fn is_full(&self) -> bool {
        self.parts.len() >= PARTS
    }

    /// Returns an empty list for the buffers of a chain.
    pub fn list(&mut self) -> Buffers {
        let mut list = self.spare.pop().unwrap_or_else(|| Buffers::new(self.ram.clone()));
        list.clear();
        list
    }

    /// Adds a chain's buffers. Of one with more parts than the kernel takes, the rest is not used.
    pub fn push(&mut self, head: u16, buffers: Buffers) {
        let left = PARTS.saturating_sub(self.parts.len());
        for part in buffers.remaining().iter().take(left) {
            self.parts.push(*part);
            self.room += part.len();
        }
        self.slots.push_back(Slot { head, buffers });
    }

    /// Calls `receive` with all parts and the spill buffer behind them.
    pub fn with_parts<T>(&mut self, receive: impl FnOnce(&[IoVec]) -> T) -> T {
        self.parts.push(IoVec::of(&mut self.spill));
        let result = receive(&self.parts);
        self.parts.pop();
        result
    }

    /// Copies the first bytes of a packet, of which `in_window` are in the window and the rest is spilled.
    pub fn peek(&self, to: &mut [u8]) -> usize {
        // SAFETY: the parts are guest memory that the slots keep mapped.
        unsafe { copy_out(&self.parts, 0, to) }
    }

    /// Overwrites bytes of a packet.
    pub fn patch(&mut self, offset: usize, bytes: &[u8]) {
        // SAFETY: as above.
        unsafe { copy_in(&self.parts, offset, bytes) };
    }

    /// Copies what was spilled, `count` bytes, to `offset` of the window, which has grown since.
    pub fn unspill(&mut self, offset: usize, count: usize) {
        let bytes = self.spill.get(..count).unwrap_or_default();
        // SAFETY: as above; the spill buffer is no part of the window.
        unsafe { copy_in(&self.parts, offset, bytes) };
    }

    /// Returns how many buffers a packet of `len` bytes takes.
    pub fn count(&self, len: usize) -> u16 {
        let mut rest = len as u64;
        let mut count = 0;
        for slot in &self.slots {
            if rest == 0 {
                break;
            }
            rest = rest.saturating_sub(slot.buffers.total());
            count += 1;
        }
        count
    }

    /// Takes the buffers of a packet of `len` bytes out of the window, and calls `used` with each head and
    /// how many bytes it has of the packet.
    pub fn consume(&mut self, len: usize, mut used: impl FnMut(u16, u32)) {
        let mut rest = len as u64;
        while rest > 0
            && let Some(Slot { head, buffers }) = self.slots.pop_front()
        {
            let here = rest.min(buffers.total());
            rest -= here;
            // A packet has less than 2^32 bytes.
            used(head, here as u32);
            self.spare.push(buffers);
        }
        self.parts.clear();
        self.room = 0;
        for slot in &self.slots {
            let left = PARTS.saturating_sub(self.parts.len());
            for part in slot.buffers.remaining().iter().take(left) {
                self.parts.push(*part);
                self.room += part.len();
            }
        }
    }
}
