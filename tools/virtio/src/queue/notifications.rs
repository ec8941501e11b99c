//! [`NotificationControl`]: finds new heads in the available ring, and tells the driver whether to notify of
//! them.

use super::QueueFault;
use crate::ring::SplitRing;

/// The device's position in the available ring, and whether the driver notifies of what follows.
pub struct NotificationControl {
    /// First entry that was not popped.
    next_avail: u16,
    /// `avail.idx` as it was read last.
    avail_idx: u16,
    /// The driver notifies of the next request.
    pub enabled: bool,
    /// The available ring is polled: nothing is gained by a notification of the next request.
    pub polled: bool,
}

impl NotificationControl {
    pub const fn new(next_avail: u16) -> Self {
        Self {
            next_avail,
            avail_idx: next_avail,
            enabled: false,
            polled: false,
        }
    }

    /// Returns whether there is an entry that was not popped.
    #[inline]
    pub fn has_available(&self, ring: &SplitRing) -> bool {
        ring.avail_idx() != self.next_avail
    }

    /// Asks the driver for a notification of the next request. Returns whether it is there already
    /// (2.7.10.1).
    #[inline]
    pub fn enable(&mut self, ring: &SplitRing) -> bool {
        self.enabled = true;
        self.avail_idx = ring.enable_notifications(self.next_avail);
        self.avail_idx != self.next_avail
    }

    #[inline]
    fn disable(&mut self, ring: &SplitRing) {
        self.enabled = false;
        ring.disable_notifications();
    }

    /// Begins a round: disables notifications and reads the available index. Returns whether there is a new
    /// batch.
    ///
    /// # Errors
    /// The driver made more entries available than the queue has.
    #[inline]
    pub fn begin(&mut self, ring: &SplitRing) -> Result<bool, QueueFault> {
        self.disable(ring);
        self.avail_idx = ring.avail_idx();
        self.check(ring)
    }

    /// Looks for a new batch after the last one was popped: where the ring is not polled, with notifications
    /// enabled if there is none.
    ///
    /// # Errors
    /// As [`Self::begin`].
    #[inline]
    pub fn refill(&mut self, ring: &SplitRing) -> Result<bool, QueueFault> {
        if self.polled || !self.enable(ring) {
            return Ok(false);
        }
        self.disable(ring);
        self.check(ring)
    }

    fn check(&self, ring: &SplitRing) -> Result<bool, QueueFault> {
        if self.avail_idx.wrapping_sub(self.next_avail) > ring.size() {
            return Err(QueueFault::AvailIndex {
                idx: self.avail_idx,
                popped: self.next_avail,
                size: ring.size(),
            });
        }
        Ok(!self.is_batch_popped())
    }

    /// Returns whether every entry of the batch was popped.
    #[inline]
    pub const fn is_batch_popped(&self) -> bool {
        self.next_avail == self.avail_idx
    }

    /// Returns the head of the next entry, unchecked.
    #[inline]
    pub fn head(&self, ring: &SplitRing) -> u16 {
        ring.avail_head(self.next_avail)
    }

    /// Pops the next entry.
    #[inline]
    pub const fn advance(&mut self) {
        self.next_avail = self.next_avail.wrapping_add(1);
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

    use super::NotificationControl;
    use crate::memory::GuestRam;
    use crate::queue::QueueFault;
    use crate::ring::{RingAddresses, SplitRing};
    use crate::virtio::VIRTQ_USED_F_NO_NOTIFY;

    const BASE: u64 = 0x4000_0000;
    const AVAIL: u64 = BASE + 0x1000;
    const USED: u64 = BASE + 0x2000;

    fn ring() -> (GuestMemoryMmap, SplitRing) {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(BASE), 0x1_0000)]).unwrap();
        let at = RingAddresses {
            size: 4,
            desc: GuestAddress(BASE),
            avail: GuestAddress(AVAIL),
            used: GuestAddress(USED),
        };
        let ring = SplitRing::new(&GuestRam::new(memory.clone()).unwrap(), &at, false).unwrap();
        (memory, ring)
    }

    fn offer(memory: &GuestMemoryMmap, idx: u16) {
        memory.write_obj(idx, GuestAddress(AVAIL + 2)).unwrap();
    }

    fn is_notification_wanted(memory: &GuestMemoryMmap) -> bool {
        let flags: u16 = memory.read_obj(GuestAddress(USED)).unwrap();
        flags & VIRTQ_USED_F_NO_NOTIFY == 0
    }

    #[test]
    fn notifications_are_enabled_only_when_all_is_popped_and_nothing_polls() {
        let (memory, ring) = ring();
        let mut control = NotificationControl::new(0);
        offer(&memory, 2);
        assert_eq!(control.begin(&ring), Ok(true));
        assert!(!is_notification_wanted(&memory) && !control.enabled);
        control.advance();
        assert!(!control.is_batch_popped());
        control.advance();
        assert!(control.is_batch_popped());
        // A third came while the first two were popped: found, with notifications disabled again.
        offer(&memory, 3);
        assert_eq!(control.refill(&ring), Ok(true));
        assert!(!is_notification_wanted(&memory));
        control.advance();
        assert_eq!(control.refill(&ring), Ok(false));
        assert!(is_notification_wanted(&memory) && control.enabled);
        control.polled = true;
        assert_eq!(control.begin(&ring), Ok(false));
        assert_eq!(control.refill(&ring), Ok(false));
        assert!(!is_notification_wanted(&memory));
        assert!(!control.has_available(&ring));
        offer(&memory, 4);
        assert!(control.has_available(&ring) && control.enable(&ring));
    }

    #[test]
    fn an_index_beyond_the_queue_is_a_fault() {
        let (memory, ring) = ring();
        let mut control = NotificationControl::new(u16::MAX);
        offer(&memory, 3);
        assert_eq!(control.begin(&ring), Ok(true));
        offer(&memory, 4);
        let fault = QueueFault::AvailIndex {
            idx: 4,
            popped: u16::MAX,
            size: 4,
        };
        assert_eq!(control.begin(&ring), Err(fault));
    }
}
