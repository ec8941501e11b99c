//! [`Bounce`]: an aligned buffer of the daemon's between guest memory and an image, where the guest's own
//! cannot be used.

use std::alloc::{self, Layout};
use std::ptr::NonNull;

use ringvirtio::memory::IoVec;

/// Alignment of a bounce buffer: enough for O_DIRECT on any device.
const ALIGN: usize = 4096;
/// Most bytes of a bounce buffer.
pub const BOUNCE_MAX: usize = 256 << 10;

/// A zeroed buffer, freed on drop.
pub struct Bounce {
    base: NonNull<u8>,
    layout: Layout,
}

impl Bounce {
    /// Allocates at least `len` bytes, but not more than [`BOUNCE_MAX`]. Aborts the process if there is no
    /// memory, as any other allocation does: the guest must not see it as an error of the image, and the next
    /// daemon runs the request.
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

    /// Returns the whole buffer.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: allocated with this size, initialised, and borrowed with `self`.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), self.layout.size()) }
    }
}

impl Drop for Bounce {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { alloc::dealloc(self.base.as_ptr(), self.layout) }
    }
}

/// Copies from guest memory, beginning `skip` bytes into it, to `to`. Returns the bytes copied.
///
/// # Safety
/// The buffers are valid.
pub unsafe fn gather(parts: &[IoVec], skip: u64, to: &mut [u8]) -> usize {
    each(parts, skip, to.len(), |guest, at, len| {
        if let Some(to) = to.get_mut(at..at + len) {
            // SAFETY: inside a valid buffer. A guest that writes to it meanwhile gets mixed bytes, but no
            // reference to it is ever formed.
            unsafe { guest.copy_to_nonoverlapping(to.as_mut_ptr(), len) };
        }
    })
}

/// Copies `from` to guest memory, beginning `skip` bytes into it. Returns the bytes copied.
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

/// Calls `copy(guest, at, len)` for each contiguous part of `len` bytes of the buffers, beginning `skip`
/// bytes into them.
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
