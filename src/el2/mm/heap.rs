//! The global allocator, for boot-time structures (device tree, stage 1) and the zones' vGICs, whose
//! allocations are fallible. Everything else of a zone comes from [`super::frames`], where exhaustion is an
//! error code as well.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::{NonNull, null_mut};

use buddy_system_allocator::Heap;
use ringvisor::addr::PAGE_SIZE;

use crate::el2::arch;
use crate::el2::sync::Mutex;

const PAGE: usize = PAGE_SIZE as usize;

struct Global(Mutex<Heap<32>>);

#[global_allocator]
static HEAP: Global = Global(Mutex::new(Heap::empty()));

// SAFETY: the buddy allocator hands out disjoint blocks of the memory it was given, aligned as asked.
unsafe impl GlobalAlloc for Global {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.0.lock().alloc(layout).map_or(null_mut(), NonNull::as_ptr)
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise about the layout.
        let block = unsafe { self.alloc(layout) };
        if !block.is_null() {
            // SAFETY: allocated just now with this layout.
            unsafe { block.write_bytes(0, layout.size()) };
            // Stage 1's tables come from here: see `frames::Tables`.
            arch::dsb_ishst();
        }
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if let Some(block) = NonNull::new(block) {
            // SAFETY: the caller passes back a block of `alloc` with its layout.
            unsafe { self.0.lock().dealloc(block, layout) }
        }
    }
}

/// Adds memory to the heap.
///
/// # Safety
/// The range must be unused and mapped.
pub unsafe fn init(start: usize, size: usize) {
    // SAFETY: the caller's promise.
    unsafe { HEAP.0.lock().init(start, size) }
}

/// Returns whether `pages` can still be allocated, one by one or together. After boot only the holder of the
/// command lock allocates, so for that caller the answer stays true.
pub fn has_room(pages: usize) -> bool {
    let size = pages.checked_mul(PAGE).and_then(usize::checked_next_power_of_two);
    let Some(layout) = size.and_then(|size| Layout::from_size_align(size, PAGE).ok()) else {
        return false;
    };
    let mut heap = HEAP.0.lock();
    let Ok(block) = heap.alloc(layout) else {
        return false;
    };
    // SAFETY: allocated just now with this layout, and not in use.
    unsafe { heap.dealloc(block, layout) }
    true
}

/// Returns the heap's size and how much of it is in use, in bytes.
pub fn usage() -> (usize, usize) {
    let heap = HEAP.0.lock();
    (heap.stats_total_bytes(), heap.stats_alloc_actual())
}
