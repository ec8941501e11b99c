//! Disks without storage, for benchmarks and tests: `null:SIZE` and `zero:SIZE`.

use std::path::Path;

use crate::engine::IoKind;
use crate::memory::IoVec;

/// What reads give; writes vanish on both.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Content {
    /// Nothing is moved: a read leaves the guest's buffer as it was.
    Null,
    /// Zeroes.
    Zero,
}

/// A disk without storage.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Synthetic {
    content: Content,
    size: u64,
}

impl Synthetic {
    /// No disk at all.
    pub const EMPTY: Self = Self {
        content: Content::Null,
        size: 0,
    };

    /// What such a path says; `None` if it names a file, `Some(Err)` if the size is none. Sizes are bytes, or end in
    /// `K`, `M`, `G` or `T`.
    #[must_use]
    pub fn parse(path: &Path) -> Option<Result<Self, String>> {
        let (content, size) = match path.to_str()?.split_once(':')? {
            ("null", size) => (Content::Null, size),
            ("zero", size) => (Content::Zero, size),
            _ => return None,
        };
        Some(match parse_size(size) {
            Some(size) => Ok(Self { content, size }),
            None => Err(size.to_owned()),
        })
    }

    /// Bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// # Safety
    /// The buffers are valid.
    pub(super) unsafe fn run(&self, kind: IoKind, parts: &[IoVec]) -> usize {
        if !kind.is_transfer() {
            return 0;
        }
        let mut moved = 0;
        for part in parts {
            if (kind, self.content) == (IoKind::Read, Content::Zero) {
                // SAFETY: the buffer is valid for writes, says the caller.
                unsafe { part.as_ptr().write_bytes(0, part.len()) };
            }
            moved += part.len();
        }
        moved
    }
}

fn parse_size(text: &str) -> Option<u64> {
    let shift = match text.bytes().last()? {
        b'K' => 10,
        b'M' => 20,
        b'G' => 30,
        b'T' => 40,
        _ => 0,
    };
    let digits = if shift == 0 {
        text
    } else {
        text.trim_end_matches(['K', 'M', 'G', 'T'])
    };
    if text.len() - digits.len() > 1 || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}
