//! [`Marks`]: positions in a console's scroll-back and in the guest's output. All daemons count the guest's
//! output alike; a daemon's scroll-back has that daemon's own lines in between.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// From this position on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    /// In the scroll-back.
    kept: u64,
    /// In the guest's output.
    guest: u64,
    /// Whether what follows, up to the next mark, is the daemon's, not the guest's.
    note: bool,
}

/// The places of the daemon's own lines, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marks(VecDeque<Mark>);

impl Marks {
    /// Marks `begin..end` as the daemon's; behind it, the guest's output continues at `guest`.
    pub fn insert(&mut self, begin: u64, end: u64, guest: u64) {
        let before = self.guest(begin);
        self.0.push_back(Mark {
            kept: begin,
            guest: before,
            note: true,
        });
        self.0.push_back(Mark {
            kept: end,
            guest,
            note: false,
        });
    }

    /// Removes marks before `start`, which is no longer kept.
    pub fn forget(&mut self, start: u64) {
        while self.0.get(1).is_some_and(|second| second.kept <= start) {
            self.0.pop_front();
        }
    }

    /// Returns the position in the guest's output of a position in the scroll-back.
    pub fn guest(&self, kept: u64) -> u64 {
        match self.0.iter().rev().find(|mark| mark.kept <= kept) {
            None => kept,
            Some(mark) if mark.note => mark.guest,
            Some(mark) => mark.guest.saturating_add(kept.saturating_sub(mark.kept)),
        }
    }

    /// Returns the position in the scroll-back of a position in the guest's output: before the daemon's lines
    /// at that place, or before those that report the loss of it.
    pub fn position(&self, guest: u64) -> u64 {
        let next = self.0.iter().position(|mark| mark.guest >= guest);
        let next = next.unwrap_or(self.0.len());
        match self.0.get(next) {
            Some(mark) if mark.guest == guest => return mark.kept,
            _ => {}
        }
        match next.checked_sub(1).and_then(|last| self.0.get(last)) {
            None => guest,
            Some(mark) if mark.note => mark.kept,
            Some(mark) => mark.kept.saturating_add(guest.saturating_sub(mark.guest)),
        }
    }
}
