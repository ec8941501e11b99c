//! EL2's trace buffers, in read-only pages of BAR 0: one ring of [`Record`]s per CPU, from [`OFFSET`].
//!
//! A CPU writes its record number `n` to position `n mod` [`super::info::InfoPage::trace_records`], then `n +
//! 1` to [`super::counters::CpuCounters::trace_head`]. Old records are overwritten; EL2 never waits. A reader
//! reads the head, copies, reads the head again, and drops what may have been overwritten meanwhile
//! ([`first_intact`]). Tracing is off after boot and then costs one load and one branch at each trace point;
//! [`super::command::Op::Trace`] switches it.

use super::log;

/// Offset in BAR 0 of CPU 0's ring; rings follow one another.
pub const OFFSET: usize = 0x1_0000;
/// Bytes of a record.
pub const RECORD_SIZE: usize = 16;
/// Most bytes of all rings.
pub const SIZE: usize = log::OFFSET - OFFSET;

/// Bit of the mask: the steps of requests.
pub const REQUESTS: u32 = 1;
/// Bit of the mask: every exit to EL2.
pub const EXITS: u32 = 2;
/// All bits.
pub const ALL: u32 = REQUESTS | EXITS;

numbered! {
    /// What a record describes.
    #[derive(Hash)]
    pub enum Kind: u8 {
        /// An exit to EL2: `slot` is the [`super::counters::Exit`], `value` the ticks spent, the stamp its
        /// start.
        Exit = 1,
        /// A guest stored to QueueNotify. The stamp is that of the trap.
        Notify = 2,
        /// An entry for the queue was added to the ring; without one, the queue's pending bit was set.
        Ring = 3,
        /// The event interrupt, the control device's INTx, was raised.
        EventInterrupt = 4,
        /// The daemon stored to the used-buffer doorbell. The stamp is that of the trap.
        Doorbell = 5,
        /// An interrupt became pending in a list register of this CPU: `value` is its INTID.
        Inject = 6,
        /// The guest stored to InterruptACK. The stamp is that of the trap.
        Acknowledge = 7,
    }
}

/// One record of two words: the stamp, and the rest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record {
    /// Generic counter as root reads it (CNTVCT_EL0 in root).
    pub stamp: u64,
    /// What the record describes.
    pub kind: Kind,
    /// Zone.
    pub zone: u8,
    /// virtio slot, or as documented at `kind`.
    pub slot: u8,
    /// Queue.
    pub queue: u8,
    /// As documented at `kind`.
    pub value: u32,
}

impl Record {
    /// Returns the second word: all but the stamp.
    pub const fn word(self) -> u64 {
        self.kind as u64
            | (self.zone as u64) << 8
            | (self.slot as u64) << 16
            | (self.queue as u64) << 24
            | (self.value as u64) << 32
    }

    /// From both words; `None` for a kind that does not exist.
    pub fn parse(stamp: u64, word: u64) -> Option<Self> {
        Some(Self {
            stamp,
            kind: Kind::try_from(word as u8).ok()?,
            zone: (word >> 8) as u8,
            slot: (word >> 16) as u8,
            queue: (word >> 24) as u8,
            value: (word >> 32) as u32,
        })
    }
}

/// Returns the number of the first record that a reader may trust after it copied a ring of `capacity`
/// records, given the head it read afterwards: the record being written may be half overwritten.
pub const fn first_intact(head: u64, capacity: u64) -> u64 {
    (head + 1).saturating_sub(capacity)
}

/// Returns the pages of a CPU's ring on a machine with this many CPUs: a power of two.
pub const fn pages_per_cpu(cpus: usize) -> usize {
    /// Pages of all rings together, as long as each has one.
    const BUDGET: usize = 32;
    match cpus {
        0..=4 => BUDGET / 4,
        5..=8 => BUDGET / 8,
        9..=16 => BUDGET / 16,
        _ => 1,
    }
}

const _: () = assert!(pages_per_cpu(super::MAX_CPUS) * super::MAX_CPUS * 4096 <= SIZE);

#[cfg(test)]
mod tests {
    use super::{Kind, OFFSET, Record, first_intact, pages_per_cpu};
    use crate::abi::log;

    #[test]
    fn records_survive_their_words() {
        let record = Record {
            stamp: u64::MAX,
            kind: Kind::Ring,
            zone: 15,
            slot: 31,
            queue: 7,
            value: 0xdead_beef,
        };
        assert_eq!(Record::parse(record.stamp, record.word()), Some(record));
        for kind in 0..=u8::MAX {
            let parsed = Record::parse(0, kind.into());
            assert_eq!(parsed.is_some(), (1..=7).contains(&kind), "{kind}");
            assert!(parsed.is_none_or(|record| record.kind as u8 == kind));
        }
    }

    #[test]
    fn what_may_be_overwritten_is_not_trusted() {
        assert_eq!(first_intact(0, 256), 0);
        assert_eq!(first_intact(255, 256), 0);
        // Record 256 may be on its way to the place of record 0.
        assert_eq!(first_intact(256, 256), 1);
        assert_eq!(first_intact(1000, 256), 745);
    }

    #[test]
    fn rings_fit_into_the_bar() {
        for cpus in 1..=super::super::MAX_CPUS {
            let pages = pages_per_cpu(cpus);
            assert!(pages.is_power_of_two());
            assert!(OFFSET + pages * cpus * 4096 <= log::OFFSET);
        }
        assert_eq!(pages_per_cpu(4), 8);
        assert_eq!(pages_per_cpu(16), 2);
    }
}
