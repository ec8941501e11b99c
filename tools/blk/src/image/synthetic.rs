//! Disks without storage, for benchmarks and tests: `null:SIZE` and `zero:SIZE`.

use std::path::Path;

use ringvirtio::memory::IoVec;

use super::IoKind;

/// Contents that reads return; both kinds drop writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Content {
    /// A read leaves the guest's buffer unchanged.
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
    /// A disk of no size.
    pub const EMPTY: Self = Self {
        content: Content::Null,
        size: 0,
    };

    /// Parses a path; `None` if it names a file, `Some(Err)` with the size if that is invalid. Sizes are
    /// bytes, or end in `K`, `M`, `G` or `T`.
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

    /// Returns whether this path names a disk without storage.
    pub fn is_named_by(path: &Path) -> bool {
        Self::parse(path).is_some()
    }

    /// Returns the size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// # Safety
    /// The buffers are valid.
    pub(super) unsafe fn run(&self, kind: IoKind, parts: &[IoVec]) -> usize {
        if !kind.is_transfer() {
            return 0;
        }
        let mut transferred = 0;
        for part in parts {
            if (kind, self.content) == (IoKind::Read, Content::Zero) {
                // SAFETY: the caller guarantees that the buffer is valid for writes.
                unsafe { part.as_ptr().write_bytes(0, part.len()) };
            }
            transferred += part.len();
        }
        transferred
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
    let digits = text.strip_suffix(['K', 'M', 'G', 'T']).unwrap_or(text);
    let digits = Some(digits).filter(|digits| digits.bytes().all(|digit| digit.is_ascii_digit()))?;
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}
