//! [`Bounce`]: an aligned buffer of ours between guest memory and an image, where the guest's own cannot be used.

use std::alloc::{self, Layout};
use std::ptr::NonNull;

use crate::memory::IoVec;

/// What such a buffer is aligned to: enough for O_DIRECT on any device.
const ALIGN: usize = 4096;
/// Most bytes of one.
pub const BOUNCE_MAX: usize = 256 << 10;

/// Zeroed memory, freed at the end.
pub struct Bounce {
    base: NonNull<u8>,
    layout: Layout,
}

impl Bounce {
    /// At least `len` bytes, but not more than [`BOUNCE_MAX`]. That there is no memory for it is no error of the image, which
    /// a guest should see: as with any other allocation the process ends, and the next one does the request.
    pub fn new(len: u64) -> Self {
        let size = usize::try_from(len)
            .unwrap_or(BOUNCE_MAX)
            .clamp(1, BOUNCE_MAX)
            .next_multiple_of(512);
        let layout = Layout::from_size_align(size, ALIGN).unwrap_or(Layout::new::<[u8; BOUNCE_MAX]>());
        // SAFETY: the size is not zero.
        let base = NonNull::new(unsafe { alloc::alloc_zeroed(layout) });
        let base = base.unwrap_or_else(|| alloc::handle_alloc_error(layout));
        Self { base, layout }
    }

    /// All of it.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: it is allocated with this size, initialised, and borrowed with `self`.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), self.layout.size()) }
    }
}

impl Drop for Bounce {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { alloc::dealloc(self.base.as_ptr(), self.layout) }
    }
}

/// Copies guest memory into `to`, from `skip` bytes on; returns how many bytes there were.
///
/// # Safety
/// The buffers are valid.
pub unsafe fn gather(parts: &[IoVec], skip: u64, to: &mut [u8]) -> usize {
    each(parts, skip, to.len(), |guest, at, len| {
        if let Some(to) = to.get_mut(at..at + len) {
            // SAFETY: inside a valid buffer. A guest that writes to it meanwhile gets what it deserves, but no
            // reference to it is ever formed.
            unsafe { guest.copy_to_nonoverlapping(to.as_mut_ptr(), len) };
        }
    })
}

/// Copies `from` into guest memory, from `skip` bytes on; returns how many bytes fit.
///
/// # Safety
/// The buffers are valid.
pub unsafe fn scatter(from: &[u8], parts: &[IoVec], skip: u64) -> usize {
    each(parts, skip, from.len(), |guest, at, len| {
        if let Some(from) = from.get(at..at + len) {
            // SAFETY: as above.
            unsafe { guest.copy_from_nonoverlapping(from.as_ptr(), len) };
        }
    })
}

/// Calls `copy(guest, at, len)` for the pieces of `len` bytes of the buffers from `skip` on.
fn each(parts: &[IoVec], skip: u64, len: usize, mut copy: impl FnMut(*mut u8, usize, usize)) -> usize {
    let mut skip = skip;
    let mut at = 0;
    for part in parts {
        let size = part.len() as u64;
        if skip >= size {
            skip -= size;
            continue;
        }
        let now = ((size - skip) as usize).min(len - at);
        if now == 0 {
            break;
        }
        copy(part.as_ptr().wrapping_add(skip as usize), at, now);
        at += now;
        skip = 0;
    }
    at
}
