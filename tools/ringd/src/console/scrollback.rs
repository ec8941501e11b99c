//! [`Scrollback`]: the newest bytes of a stream, addressed by their position in it.

use std::collections::VecDeque;

/// Bytes of output kept.
pub const KEPT: usize = 256 << 10;

/// The newest bytes of a stream; positions count from the stream's beginning.
pub struct Scrollback {
    bytes: VecDeque<u8>,
    limit: usize,
    end: u64,
}

/// The result of [`Scrollback::read`].
#[derive(Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Bytes between the requested position and the first one returned, which are no longer kept.
    pub skipped: u64,
    /// The bytes.
    pub bytes: Vec<u8>,
    /// Position of the byte after them.
    pub next: u64,
}

impl Default for Scrollback {
    fn default() -> Self {
        Self::new(KEPT)
    }
}

impl Scrollback {
    /// Returns a scroll-back of up to `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self {
            bytes: VecDeque::new(),
            limit,
            end: 0,
        }
    }

    /// Returns a scroll-back of up to [`KEPT`] bytes that begins at `start`.
    pub fn starting_at(start: u64) -> Self {
        Self {
            end: start,
            ..Self::default()
        }
    }

    /// Returns the position of the oldest byte kept.
    pub fn start(&self) -> u64 {
        self.end.saturating_sub(self.bytes.len() as u64)
    }

    /// Returns the position after the newest byte.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Appends `new`, dropping the oldest bytes beyond the limit.
    pub fn push(&mut self, new: &[u8]) {
        self.end = self.end.wrapping_add(new.len() as u64);
        let new = new
            .get(new.len().saturating_sub(self.limit)..)
            .unwrap_or_default();
        let excess = self
            .bytes
            .len()
            .saturating_add(new.len())
            .saturating_sub(self.limit);
        self.bytes.drain(..excess.min(self.bytes.len()));
        self.bytes.extend(new);
    }

    /// Returns up to `most` bytes from `position` on, or from the oldest one kept.
    pub fn read(&self, position: u64, most: usize) -> Chunk {
        let from = position.clamp(self.start(), self.end);
        let offset = usize::try_from(from.saturating_sub(self.start())).unwrap_or(usize::MAX);
        let bytes: Vec<u8> = self.bytes.iter().skip(offset).take(most).copied().collect();
        let next = from.saturating_add(bytes.len() as u64);
        Chunk {
            skipped: from.saturating_sub(position),
            bytes,
            next,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Chunk, Scrollback};

    #[test]
    fn the_newest_bytes_are_kept() {
        let mut kept = Scrollback::new(8);
        kept.push(b"abcdef");
        assert_eq!(
            kept.read(2, 3),
            Chunk {
                skipped: 0,
                bytes: b"cde".to_vec(),
                next: 5
            }
        );
        kept.push(b"ghij");
        assert_eq!((kept.start(), kept.end()), (2, 10));
        assert_eq!(
            kept.read(0, 100),
            Chunk {
                skipped: 2,
                bytes: b"cdefghij".to_vec(),
                next: 10
            }
        );
        kept.push(b"0123456789");
        assert_eq!(
            kept.read(10, 100),
            Chunk {
                skipped: 2,
                bytes: b"23456789".to_vec(),
                next: 20
            }
        );
    }

    #[test]
    fn reading_at_and_behind_the_end_is_empty() {
        let mut kept = Scrollback::new(8);
        kept.push(b"ab");
        assert_eq!(
            kept.read(2, 8),
            Chunk {
                skipped: 0,
                bytes: vec![],
                next: 2
            }
        );
        assert_eq!(kept.read(7, 8).next, 2);
    }
}
