//! The event ring of a zone: events from EL2 to the daemon through memory that both can write.
//!
//! Parts: [`Entry`] (an event, and its pending bit), [`Ring`] (the shared words), [`Producer`] (EL2, any
//! number of CPUs), [`Consumer`] (the daemon, one thread), [`console`] (byte rings), `window` (the layout of
//! `abi::shared` as a type).
//!
//! # Why it is never full
//! Every event has a pending bit. A producer adds an entry only if it finds the bit clear, the consumer
//! clears it only after it has popped the entry, and there are fewer bits than slots. So a producer never
//! waits, never checks for room and never reads an index of the consumer: it executes four atomic operations
//! whatever the daemon writes. A daemon that corrupts the shared words loses its own events, nothing else.
//!
//! # Orderings
//! Every cross-thread hand-over is a read-modify-write on both sides, which are totally ordered per word, so
//! release and acquire are enough and no `SeqCst` fence is needed:
//! - *Set and clear of a pending bit* (`pending_set`, `pending_clear`): if the set comes first, the clear
//!   reads from it, and what the guest wrote before its notification is visible when the consumer then checks
//!   the queue. If the clear comes first, the producer sees the bit clear and adds an entry.
//! - *Fill and read of a slot* (`slot_fill`, `slot_read`): an entry that was read had its bit set, so the
//!   clear that follows cannot precede that set and leave the bit set without an entry.
//! - *Arm and disarm* (`arm`, `disarm`): either the producer comes second, reads 1 and raises the interrupt,
//!   or the consumer does, and its second check of the slot sees the entry.
//! - *Advance and read of the head* (`head_advance`, `head_read`): a consumer that reads a head on attaching
//!   sees the pending bits of all entries before it set, so that clearing all bits clears those.
//!
//! The names are those of [`crate::sync::ordering`]: `tests/ring_mutations.sh` weakens each in turn and
//! expects a test to fail.

pub mod console;
mod consumer;
mod entry;
mod producer;
#[cfg(not(loom))]
mod window;
mod words;

pub use consumer::Consumer;
pub use entry::{BITS, Entry};
pub use producer::{Producer, Wakeup};
#[cfg(not(loom))]
pub use window::ZoneWindow;
pub use words::Ring;
