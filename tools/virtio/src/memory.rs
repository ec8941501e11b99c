//! Guest RAM and shared state as the device sees them: checked once, then accessed without a lookup.
//!
//! [`GuestRam`] resolves guest-physical addresses with every byte bounds-checked; [`Slots`] is a typed,
//! atomic view of a table (a ring, the in-flight log) that keeps its mapping alive. All handling of raw
//! pointers into mapped memory is here and in [`crate::buffers`]; [`crate::ring`] and [`crate::inflight`] are
//! safe code on top. The guest may change any byte at any time, so nothing here ever forms a plain reference
//! to guest memory.

use std::any::Any;
use std::fmt;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, MemoryRegionAddress};
use vm_memory::{GuestMemoryError, MmapRegion};

/// Why a range of memory cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    /// Some byte of the range is not guest RAM, or the range wraps.
    #[error("{len:#x} bytes at {addr:#x} are not all guest RAM")]
    NotRam {
        /// Guest-physical start.
        addr: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Two parts of guest RAM overlap.
    #[error("{len:#x} bytes at {addr:#x} are guest RAM twice")]
    Overlap {
        /// Guest-physical start of one of them.
        addr: u64,
        /// Its length in bytes.
        len: u64,
    },
    /// A table does not start at a multiple of its element's alignment.
    #[error("{addr:#x} is not aligned to {align} bytes")]
    Misaligned {
        /// Guest-physical start, or offset in the mapping.
        addr: u64,
        /// Required alignment in bytes.
        align: usize,
    },
    /// A table is outside of its mapping.
    #[error("{len:#x} bytes at offset {offset:#x} are outside of a mapping of {size:#x} bytes")]
    OutsideMapping {
        /// Offset in the mapping.
        offset: usize,
        /// Length in bytes.
        len: usize,
        /// Bytes mapped.
        size: usize,
    },
}

/// Integers that two parties may share.
///
/// # Safety
/// Any bit pattern is a value, and accesses by shared reference are atomic.
pub unsafe trait Shared: Send + Sync + 'static {}
// SAFETY: an atomic integer.
unsafe impl Shared for AtomicU8 {}
// SAFETY: as above.
unsafe impl Shared for AtomicU16 {}
// SAFETY: as above.
unsafe impl Shared for AtomicU32 {}
// SAFETY: as above.
unsafe impl Shared for AtomicU64 {}

/// A table of atomics in mapped memory, which is mapped as long as the table lives.
pub struct Slots<T: Shared> {
    base: NonNull<T>,
    count: usize,
    _mapping: Arc<dyn Any + Send + Sync>,
}

// SAFETY: the table is only accessed through `&T` with `T: Sync` atomics, and the mapping is shared
// ownership.
unsafe impl<T: Shared> Send for Slots<T> {}
// SAFETY: as above.
unsafe impl<T: Shared> Sync for Slots<T> {}

impl<T: Shared> Slots<T> {
    /// Returns `count` elements at `offset` bytes into a mapping.
    ///
    /// # Errors
    /// They are outside of the mapping or misaligned.
    pub fn in_mapping(mapping: &Arc<MmapRegion>, offset: usize, count: usize) -> Result<Self, MemoryError> {
        let size = mapping.size();
        let len = count.saturating_mul(size_of::<T>());
        if offset.checked_add(len).is_none_or(|end| end > size) {
            return Err(MemoryError::OutsideMapping { offset, len, size });
        }
        // The offset is inside the mapping, so this does not wrap.
        Self::at(
            mapping.as_ptr().wrapping_add(offset),
            offset as u64,
            count,
            mapping.clone(),
        )
    }

    /// `host` must point to `count` elements inside what `mapping` keeps mapped.
    fn at(
        host: *mut u8,
        addr: u64,
        count: usize,
        mapping: Arc<dyn Any + Send + Sync>,
    ) -> Result<Self, MemoryError> {
        let base = host.cast::<T>();
        match NonNull::new(base) {
            Some(base) if base.is_aligned() => Ok(Self {
                base,
                count,
                _mapping: mapping,
            }),
            _ => Err(MemoryError::Misaligned {
                addr,
                align: align_of::<T>(),
            }),
        }
    }

    /// Returns element `index`, or `None` past the end.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<&T> {
        if index >= self.count {
            return None;
        }
        // SAFETY: `base` points to `count` aligned elements of memory that `_mapping` keeps mapped; `T` is an
        // atomic integer, for which any bits are valid and concurrent change by the guest is no data race.
        Some(unsafe { self.base.add(index).as_ref() })
    }
}

/// A host-virtual range inside guest RAM, laid out as `struct iovec`.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct IoVec(pub(crate) libc::iovec);

impl IoVec {
    /// Returns a buffer of this process, valid as long as the bytes are.
    #[inline]
    pub fn of(bytes: &mut [u8]) -> Self {
        Self(libc::iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: bytes.len(),
        })
    }

    /// Returns a buffer of this process that is only read.
    pub fn reading(bytes: &[u8]) -> Self {
        Self(libc::iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        })
    }

    /// Returns it without its first bytes.
    #[inline]
    pub fn behind(&self, bytes: usize) -> Self {
        let bytes = bytes.min(self.len());
        Self(libc::iovec {
            iov_base: self.as_ptr().wrapping_add(bytes).cast(),
            iov_len: self.len() - bytes,
        })
    }

    /// Returns its first bytes, or all of it if it has fewer.
    #[inline]
    pub fn front(&self, bytes: usize) -> Self {
        Self(libc::iovec {
            iov_base: self.0.iov_base,
            iov_len: bytes.min(self.len()),
        })
    }

    /// Returns its length in bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.0.iov_len
    }

    /// Returns whether it has no bytes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.iov_len == 0
    }

    /// Returns its host-virtual start.
    #[inline]
    pub fn as_ptr(&self) -> *mut u8 {
        self.0.iov_base.cast()
    }
}

impl fmt::Debug for IoVec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:p}+{:#x}", self.0.iov_base, self.0.iov_len)
    }
}

/// A region of guest RAM.
pub struct Extent {
    /// Guest-physical start.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// Where it is mapped here.
    pub host: *mut u8,
    /// The file it is mapped from, open as long as the RAM lives, and its offset in the file.
    pub file: Option<(RawFd, u64)>,
}

/// A guest's RAM, resolved to host addresses once.
pub struct GuestRam {
    extents: Vec<Extent>,
    /// Its pages never change while it is mapped.
    pub(crate) fixed: bool,
    /// Keeps it mapped.
    _memory: Box<dyn Any + Send + Sync>,
}

/// A range of guest RAM that is part of a mapping.
pub struct ForeignPart {
    /// Guest-physical start.
    pub start: GuestAddress,
    /// Bytes.
    pub len: usize,
    /// The mapping it is part of.
    pub mapping: Arc<MmapRegion>,
    /// Its offset in the mapping.
    pub offset: usize,
}

// SAFETY: the pointers name memory that `_memory` keeps mapped for as long as this value lives; they are only
// dereferenced through atomics or handed to the kernel.
unsafe impl Send for GuestRam {}
// SAFETY: as above; the value itself is immutable.
unsafe impl Sync for GuestRam {}

impl GuestRam {
    /// Resolves all regions of `memory`, which stays mapped as long as the result or anything made from it.
    ///
    /// # Errors
    /// A region has no host address.
    pub fn new(memory: GuestMemoryMmap) -> Result<Arc<Self>, GuestMemoryError> {
        let mut extents = Vec::new();
        for region in memory.iter() {
            let host = region.get_host_address(MemoryRegionAddress(0))?;
            extents.push(Extent {
                start: region.start_addr().0,
                len: region.len(),
                host,
                file: region
                    .file_offset()
                    .map(|file| (file.file().as_raw_fd(), file.start())),
            });
        }
        extents.sort_by_key(|extent| extent.start);
        Ok(Arc::new(Self {
            extents,
            fixed: true,
            _memory: Box::new(memory),
        }))
    }

    /// Returns RAM made of parts of mappings that another process owns. Their pages may be replaced, as by a
    /// VMM whose guest inflates its balloon, so they are not registered with the kernel, which would keep the
    /// old ones.
    ///
    /// # Errors
    /// A part is outside of its mapping or overlaps another.
    pub fn foreign(parts: Vec<ForeignPart>) -> Result<Arc<Self>, MemoryError> {
        let mut extents: Vec<Extent> = Vec::new();
        for part in &parts {
            let (size, offset, len) = (part.mapping.size(), part.offset, part.len);
            if offset.checked_add(len).is_none_or(|end| end > size) {
                return Err(MemoryError::OutsideMapping { offset, len, size });
            }
            let (start, len) = (part.start.0, len as u64);
            let end = start.checked_add(len);
            let end = end.ok_or(MemoryError::NotRam { addr: start, len })?;
            let meets = |other: &Extent| start < other.start + other.len && other.start < end;
            if extents.iter().any(meets) {
                return Err(MemoryError::Overlap { addr: start, len });
            }
            // The offset is inside the mapping, so this does not wrap.
            let host = part.mapping.as_ptr().wrapping_add(offset);
            extents.push(Extent {
                start,
                len,
                host,
                file: None,
            });
        }
        extents.sort_by_key(|extent| extent.start);
        Ok(Arc::new(Self {
            extents,
            fixed: false,
            _memory: Box::new(parts),
        }))
    }

    /// Returns its regions, by address.
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// Returns the guest-physical address of a buffer that is in one region.
    pub fn guest_address(&self, part: &IoVec) -> Option<u64> {
        let host = part.as_ptr().addr();
        self.extents.iter().find_map(|extent| {
            let offset = host.checked_sub(extent.host.addr())? as u64;
            let room = extent.len.checked_sub(offset)?;
            (part.len() as u64 <= room).then(|| extent.start.wrapping_add(offset))
        })
    }

    /// Returns the host address of `addr` and how many bytes follow it in the same extent.
    #[inline]
    pub(crate) fn resolve(&self, addr: u64) -> Option<(*mut u8, u64)> {
        self.extents.iter().find_map(|extent| {
            let offset = addr.checked_sub(extent.start)?;
            let room = extent.len.checked_sub(offset).filter(|&room| room > 0)?;
            Some((extent.host.wrapping_add(usize::try_from(offset).ok()?), room))
        })
    }

    /// Returns whether all of `len` bytes at `addr` are RAM.
    pub fn contains(&self, addr: GuestAddress, len: u64) -> bool {
        let (mut addr, mut rest) = (addr.0, len);
        while rest > 0 {
            let Some((_, room)) = self.resolve(addr) else {
                return false;
            };
            if rest <= room {
                return true;
            }
            rest -= room;
            let Some(next) = addr.checked_add(room) else {
                return false;
            };
            addr = next;
        }
        true
    }

    /// Returns two little-endian words at guest-physical `addr`, of any alignment, each byte read once;
    /// `None` if they are not RAM of one extent.
    pub fn read_words(&self, addr: GuestAddress) -> Option<[u64; 2]> {
        let (host, room) = self.resolve(addr.0)?;
        if room < 16 {
            return None;
        }
        let words: NonNull<AtomicU64> = NonNull::new(host)?.cast();
        if words.is_aligned() {
            // SAFETY: 16 bytes from here are mapped RAM, aligned for the atomics.
            let (low, high) = unsafe { (words.as_ref(), words.add(1).as_ref()) };
            return Some([low, high].map(|word| u64::from_le(word.load(Ordering::Relaxed))));
        }
        let mut bytes = [0_u8; 16];
        for (index, byte) in bytes.iter_mut().enumerate() {
            // SAFETY: `index` is below 16, and 16 bytes from here are mapped RAM.
            *byte = unsafe { host.add(index).read_volatile() };
        }
        let raw = u128::from_le_bytes(bytes);
        Some([raw as u64, (raw >> 64) as u64])
    }

    /// Returns `count` elements at guest-physical `addr`, in one extent.
    ///
    /// # Errors
    /// They are not RAM of one extent, or misaligned.
    pub fn slots<T: Shared>(
        self: &Arc<Self>,
        addr: GuestAddress,
        count: usize,
    ) -> Result<Slots<T>, MemoryError> {
        let len = count.saturating_mul(size_of::<T>()) as u64;
        let outside = MemoryError::NotRam { addr: addr.0, len };
        let (host, room) = self.resolve(addr.0).ok_or(outside)?;
        if room < len {
            return Err(outside);
        }
        Slots::at(host, addr.0, count, self.clone())
    }
}
