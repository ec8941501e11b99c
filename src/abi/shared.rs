//! The shared page: 2 MiB of root's ordinary memory, donated with [`super::doorbell::ATTACH`], for the
//! process that serves zones.
//!
//! It is cacheable normal memory for both sides, which BAR memory is not: Linux maps a BAR as Device memory,
//! on which exclusives and atomics are not architected. It is a hugetlbfs file, so it outlives the daemon,
//! and the next daemon attaches the same page again.
//!
//! Layout: [`HEADER`], the [`COMMAND`] slot with its payload, then a window of [`ZONE_STRIDE`] bytes per
//! zone.

use super::{MAX_QUEUES, MAX_SLOTS, MAX_ZONES};

/// Bytes in total.
pub const SIZE: usize = 2 << 20;
/// Offset of the header: `magic: u64`, `abi_version: u32`; written by the daemon before it attaches.
pub const HEADER: usize = 0;
/// Offset of the daemon's own data, opaque to EL2, up to [`COMMAND`].
pub const DAEMON_NOTES: usize = 0x100;
/// Offset of the command slot, a [`super::command::Header`].
pub const COMMAND: usize = 0x1000;
/// Offset of the command's payload.
pub const PAYLOAD: usize = 0x1040;
/// Bytes of payload.
pub const PAYLOAD_SIZE: usize = 0x3fc0;

/// Offset of zone 0's window (unused: root has none).
pub const ZONE_BASE: usize = 0x1_0000;
/// Bytes from one zone's window to the next.
pub const ZONE_STRIDE: usize = 0x1_8000;

/// In a zone's window: ring slots, `[AtomicU64; RING_SLOTS]`.
pub const RING: usize = 0;
/// Slots of a ring: more than there are pending bits, so a ring is never full.
pub const RING_SLOTS: usize = 1024;
/// In a zone's window: the pending bitmap, `[AtomicU64; PENDING_WORDS]`.
pub const PENDING: usize = 0x2000;
/// Words of the pending bitmap.
pub const PENDING_WORDS: usize = 16;
/// In a zone's window: `armed: AtomicU32`, 1 while the consumer waits for the event interrupt.
pub const ARMED: usize = 0x2800;
/// In a zone's window: console output, `written: AtomicU64`, total bytes ever written (EL2 writes).
pub const CONSOLE_OUT_WRITTEN: usize = 0x2c00;
/// In a zone's window: console output, `claimed: AtomicU64`, as `written` but set before the bytes are: those
/// a ring's length before it may be half overwritten (EL2 writes).
pub const CONSOLE_OUT_CLAIMED: usize = 0x2c08;
/// In a zone's window: console input, `written: AtomicU64`, total bytes ever written (the daemon writes).
pub const CONSOLE_IN_WRITTEN: usize = 0x2c40;
/// In a zone's window: console input, `read: AtomicU64`, total bytes ever read (EL2 writes, never reads).
pub const CONSOLE_IN_READ: usize = 0x2c80;
/// In a zone's window: console input bytes.
pub const CONSOLE_IN: usize = 0x3000;
/// Bytes of console input.
pub const CONSOLE_IN_SIZE: usize = 0x1000;
/// In a zone's window: console output bytes.
pub const CONSOLE_OUT: usize = 0x4000;
/// Bytes of console output.
pub const CONSOLE_OUT_SIZE: usize = 0x1_0000;

/// In a zone's window: the time at which each queue was notified, `[AtomicU64; MAX_SLOTS * MAX_QUEUES]`: the
/// generic counter as root reads it, at the notification that added the entry which was popped last or will
/// be popped next. 0: never (EL2 writes, never reads).
pub const NOTIFIED: usize = 0x1_4000;

/// Returns the offset of a zone's window in the shared page, or `None` for a number out of range.
pub const fn zone_window(zone: u8) -> Option<usize> {
    if (zone as usize) < MAX_ZONES {
        Some(ZONE_BASE + zone as usize * ZONE_STRIDE)
    } else {
        None
    }
}

const _: () = assert!(PAYLOAD + PAYLOAD_SIZE <= ZONE_BASE);
const _: () = assert!(CONSOLE_OUT + CONSOLE_OUT_SIZE <= NOTIFIED);
const _: () = assert!(NOTIFIED + MAX_SLOTS * MAX_QUEUES * 8 <= ZONE_STRIDE);
const _: () = assert!(ZONE_BASE + MAX_ZONES * ZONE_STRIDE <= SIZE);
const _: () = assert!(PENDING_WORDS * 64 <= RING_SLOTS);
