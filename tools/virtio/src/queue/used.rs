//! [`UsedRing`]: completed requests on their way to the driver.

use crate::inflight::InflightLog;
use crate::ring::SplitRing;
use crate::steps::step;
use crate::trace::{self, Kind, TraceId};

/// The device's position in the used ring, and what was completed since the last publication.
pub struct UsedRing {
    /// The used index as published last.
    pub idx: u16,
    /// Heads and used lengths.
    completed: Vec<(u16, u32)>,
}

impl UsedRing {
    /// A queue of `size` entries of which `idx` were used; `completed` are to be published next.
    pub fn new(size: u16, idx: u16, completed: Vec<(u16, u32)>) -> Self {
        let mut list = completed;
        list.reserve_exact(usize::from(size).saturating_sub(list.len()));
        Self { idx, completed: list }
    }

    /// Returns how many requests wait to be published.
    #[inline]
    pub fn len(&self) -> usize {
        self.completed.len()
    }

    /// Adds a completed request.
    #[inline]
    pub fn push(&mut self, head: u16, used_len: u32) {
        self.completed.push((head, used_len));
    }

    /// Removes the request that was completed first.
    pub fn take_first(&mut self) -> Option<u16> {
        (!self.completed.is_empty()).then(|| self.completed.remove(0).0)
    }

    /// Removes a completed request of which `which` holds.
    pub fn take_back(&mut self, mut which: impl FnMut(u16) -> bool) -> Option<u16> {
        let index = self.completed.iter().position(|&(head, _)| which(head))?;
        Some(self.completed.swap_remove(index).0)
    }

    /// Publishes all completed requests with one store of the used index, each step announced in the log.
    #[inline]
    pub fn publish(&mut self, ring: &SplitRing, log: &mut InflightLog, trace: TraceId) {
        let mut idx = self.idx;
        for &(head, len) in &self.completed {
            ring.write_used(idx, head, len);
            idx = idx.wrapping_add(1);
        }
        step("used entries written");
        log.begin_publish(idx);
        step("publication logged");
        ring.publish_used(idx);
        step("published");
        for (head, _) in self.completed.drain(..) {
            trace::event(Kind::Used, trace, head.into());
            log.free(head);
            step("freed");
        }
        log.end_publish(idx);
        self.idx = idx;
        step("publication ended");
    }
}
