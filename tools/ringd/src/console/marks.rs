//! Which bytes of a console are the guest's: positions in its output, which all daemons count alike, and positions in what
//! one daemon keeps, which has that daemon's own lines in between.

use std::collections::VecDeque;

/// From this position on.
#[derive(Clone, Copy, Debug)]
struct Mark {
    /// In what is kept.
    kept: u64,
    /// In the guest's output.
    guest: u64,
    /// What follows, up to the next mark, is not the guest's.
    note: bool,
}

/// The places where lines of the daemon's own are, in order.
#[derive(Debug, Default)]
pub struct Marks(VecDeque<Mark>);

impl Marks {
    /// Not the guest's is what lies in `begin..end`; behind it, its output goes on at `guest`.
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

    /// What lies before `start` is no longer kept.
    pub fn forget(&mut self, start: u64) {
        while self.0.get(1).is_some_and(|second| second.kept <= start) {
            self.0.pop_front();
        }
    }

    /// Position in the guest's output of a position in what is kept.
    pub fn guest(&self, kept: u64) -> u64 {
        match self.0.iter().rev().find(|mark| mark.kept <= kept) {
            None => kept,
            Some(mark) if mark.note => mark.guest,
            Some(mark) => mark.guest.saturating_add(kept.saturating_sub(mark.kept)),
        }
    }

    /// Position in what is kept of a position in the guest's output: before the lines at that place, or before those that
    /// say that it is lost.
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
