//! [`Tail`]: the end of a console as it is recorded for the next daemon.

use serde::{Deserialize, Serialize};

use super::marks::Marks;
use super::scrollback::Scrollback;

/// Bytes that are recorded at most: as many as EL2 keeps.
const MAX: usize = ringvisor::abi::shared::CONSOLE_OUT_SIZE;

/// The newest output of a console.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tail {
    /// Position of its first byte in the scroll-back.
    start: u64,
    /// A character for each byte, whatever the guest's encoding.
    text: String,
    marks: Marks,
}

impl Tail {
    /// Returns the newest bytes of a scroll-back, with its marks.
    pub(super) fn of(kept: &Scrollback, marks: &Marks) -> Self {
        let start = kept.start().max(kept.end().saturating_sub(MAX as u64));
        let bytes = kept.read(start, MAX).bytes;
        Self {
            start,
            text: bytes.into_iter().map(char::from).collect(),
            marks: marks.clone(),
        }
    }

    /// Returns scroll-back and marks.
    pub(super) fn into_parts(self) -> (Scrollback, Marks) {
        let mut kept = Scrollback::starting_at(self.start);
        // What is no byte was not recorded by a daemon.
        let bytes: Vec<u8> = self
            .text
            .chars()
            .map(|c| u8::try_from(c).unwrap_or(b'?'))
            .collect();
        kept.push(&bytes);
        (kept, self.marks)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ringvisor::ring::console::OutputProducer;

    use super::{MAX, Tail};
    use crate::console::Console;
    use crate::hv::SharedPage;

    #[test]
    fn a_reader_finds_the_end_at_the_next_daemon() {
        let page = SharedPage::private().unwrap();
        let window = page.window(1).unwrap();
        let (first, mut guest) = (Console::default(), OutputProducer::new());
        for _ in 0..20 {
            guest.write(&window.output(), &[b'x'; 4096]);
            first.pump(window);
        }
        first.note("rebooting");
        guest.write(&window.output(), b"\xff the end");
        first.pump(window);
        let seen = first.guest_position(first.position_of(20 * 4096));
        first.note("zone a powered off");
        let recorded = serde_json::to_string(&first.tail()).unwrap();
        let tail: Tail = serde_json::from_str(&recorded).unwrap();
        assert_eq!(tail.text.chars().count(), MAX);
        let next = Console::ended(tail);
        let read = |guest| {
            let position = next.position_of(guest);
            next.read(position, Duration::ZERO).unwrap()
        };
        let last = read(seen);
        assert!(
            last.bytes.starts_with(b"\r\n[ringd: rebooting]\r\n\xff the end"),
            "{last:?}"
        );
        assert!(last.bytes.ends_with(b"powered off]\r\n"));
        assert_eq!(next.read(last.next, Duration::ZERO), None, "it has ended");
        assert!(read(10 * 4096).bytes.starts_with(b"xxx"));
    }
}
