//! An event: [`Entry`], its 32-bit encoding in a slot and its pending bit.

use crate::abi::{MAX_QUEUES, MAX_SLOTS};

/// Encoding: `kind << 24 | slot << 16 | queue`.
mod kind {
    pub const NOTIFY: u8 = 1;
    pub const DEVICE: u8 = 2;
    pub const CONSOLE: u8 = 3;
    pub const ZONE: u8 = 4;
    pub const FLASH: u8 = 5;
}

const DEVICE_BIT: usize = MAX_SLOTS * MAX_QUEUES;
const CONSOLE_BIT: usize = DEVICE_BIT + MAX_SLOTS;
const ZONE_BIT: usize = CONSOLE_BIT + 1;
const FLASH_BIT: usize = ZONE_BIT + 1;

/// Pending bits in use, one per possible event.
pub const BITS: usize = FLASH_BIT + 1;

const _: () = assert!(BITS <= crate::abi::shared::PENDING_WORDS * 64);
// Slack for entries whose bits an attaching consumer clears while producers are between bit and slot: each
// CPU can be at one such point.
const _: () = assert!(BITS + crate::abi::MAX_CPUS <= crate::abi::shared::RING_SLOTS);
const _: () = assert!(MAX_SLOTS <= 256 && MAX_QUEUES <= 65536);

/// An event of a zone. It says what to check, not what happened: the state is read by a command or from
/// memory.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Entry {
    /// The guest notified a queue.
    Notify {
        /// virtio slot.
        slot: u8,
        /// Queue number.
        queue: u8,
    },
    /// The device in this slot changed state: activated, reset, a queue stopped, configuration written.
    Device {
        /// virtio slot.
        slot: u8,
    },
    /// Console output is available.
    Console,
    /// The zone's state changed.
    Zone,
    /// The guest waits for an operation of its flash.
    Flash,
}

impl Entry {
    /// Returns whether slot and queue are within a zone's limits; only such entries have a bit.
    pub const fn is_valid(self) -> bool {
        match self {
            Self::Notify { slot, queue } => (slot as usize) < MAX_SLOTS && (queue as usize) < MAX_QUEUES,
            Self::Device { slot } => (slot as usize) < MAX_SLOTS,
            Self::Console | Self::Zone | Self::Flash => true,
        }
    }

    /// Returns the pending bit, below [`BITS`]; `None` if slot or queue is out of range.
    #[must_use]
    pub const fn bit(self) -> Option<usize> {
        if !self.is_valid() {
            return None;
        }
        Some(match self {
            Self::Notify { slot, queue } => slot as usize * MAX_QUEUES + queue as usize,
            Self::Device { slot } => DEVICE_BIT + slot as usize,
            Self::Console => CONSOLE_BIT,
            Self::Zone => ZONE_BIT,
            Self::Flash => FLASH_BIT,
        })
    }

    /// Returns the encoding in a slot.
    pub const fn encode(self) -> u32 {
        let (kind, slot, queue) = match self {
            Self::Notify { slot, queue } => (kind::NOTIFY, slot, queue),
            Self::Device { slot } => (kind::DEVICE, slot, 0),
            Self::Console => (kind::CONSOLE, 0, 0),
            Self::Zone => (kind::ZONE, 0, 0),
            Self::Flash => (kind::FLASH, 0, 0),
        };
        (kind as u32) << 24 | (slot as u32) << 16 | queue as u32
    }

    /// Decodes a slot; `None` for a word that [`Self::encode`] never returns for a valid entry.
    pub const fn decode(word: u32) -> Option<Self> {
        let (slot, queue) = ((word >> 16) as u8, word as u8);
        let entry = match (word >> 24) as u8 {
            kind::NOTIFY => Self::Notify { slot, queue },
            kind::DEVICE => Self::Device { slot },
            kind::CONSOLE => Self::Console,
            kind::ZONE => Self::Zone,
            kind::FLASH => Self::Flash,
            _ => return None,
        };
        if entry.is_valid() && entry.encode() == word {
            Some(entry)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{BITS, Entry};
    use crate::abi::{MAX_QUEUES, MAX_SLOTS};

    fn all() -> impl Iterator<Item = Entry> {
        let slots = 0..MAX_SLOTS as u8;
        slots
            .clone()
            .flat_map(|slot| (0..MAX_QUEUES as u8).map(move |queue| Entry::Notify { slot, queue }))
            .chain(slots.map(|slot| Entry::Device { slot }))
            .chain([Entry::Console, Entry::Zone, Entry::Flash])
    }

    #[test]
    fn every_event_has_its_own_bit() {
        let mut seen = [false; BITS];
        for entry in all() {
            let bit = entry.bit().unwrap();
            assert!(!core::mem::replace(&mut seen[bit], true), "{entry:?}");
        }
        assert!(seen.iter().all(|&seen| seen));
    }

    #[test]
    fn encoding_is_exact() {
        for entry in all() {
            assert_eq!(Entry::decode(entry.encode()), Some(entry));
        }
        for word in [
            0,
            0x0120_0000,
            0x0100_0010,
            0x0100_0100,
            0x0200_0001,
            0x0301_0000,
            0x0500_0001,
            0x0600_0000,
            u32::MAX,
        ] {
            assert_eq!(Entry::decode(word), None, "{word:#x}");
        }
    }

    #[test]
    fn out_of_range_has_no_bit() {
        assert_eq!(Entry::Notify { slot: 32, queue: 0 }.bit(), None);
        assert_eq!(Entry::Notify { slot: 0, queue: 16 }.bit(), None);
        assert_eq!(Entry::Device { slot: 255 }.bit(), None);
    }
}
