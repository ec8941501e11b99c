//! The ring of a zone: events from EL2 to the daemon through memory that both can write.
//!
//! Parts: [`Entry`] (what an event is, and its pending bit), [`Ring`] (the shared words), [`Producer`] (EL2, any
//! number of CPUs), [`Consumer`] (the daemon, one thread), [`console`] (byte rings), `window` (the layout of
//! `abi::shared` as a type).
//!
//! # Why it can never be full
//! Every event has a pending bit. A producer adds an entry only if it finds the bit clear, the consumer clears it
//! only after it has taken the entry, and there are fewer bits than slots. So a producer never waits, never looks
//! for room and never reads an index of the consumer: its work is four atomic operations whatever the daemon
//! writes. Scribbling in the shared words costs the daemon its own events, nothing else.
//!
//! # Orderings
//! Every cross-thread hand-over goes through a read-modify-write on both sides, which are totally ordered per
//! word, so release and acquire are enough and no `SeqCst` fence is needed:
//! - *Set and clear of a pending bit* (`pending_set`, `pending_clear`): if the set comes first,
//!   the clear reads from it, and what the guest wrote before it notified is visible when the consumer then looks
//!   at the queue. If the clear comes first, the producer sees the bit clear and adds an entry.
//! - *Fill and read of a slot* (`slot_fill`, `slot_read`): an entry that was read had its bit
//!   set, so the clear that follows cannot come before that set and leave it standing with no entry behind it.
//! - *Arm and disarm* (`arm`, `disarm`): either the producer comes second, reads 1 and rings, or
//!   the consumer does, and its second look at the slot sees the entry.
//! - *Advance and read of the head* (`head_advance`, `head_read`): whoever reads a head on
//!   attaching sees the pending bits of all entries before it set, so that clearing all bits clears those.
//!
//! The names are those of [`crate::sync::ordering`]: `tests/ring_mutations.sh` weakens each in turn and sees a test
//! fail.

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
