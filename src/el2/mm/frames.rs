//! Pools of page frames for stage-2 tables, zones, devices and register pages. Exhaustion is an error, never
//! a panic.

use core::alloc::Layout;
use core::ops::Deref;
use core::ptr::NonNull;

use buddy_system_allocator::Heap;
use ringvisor::addr::{PAGE_SIZE, Pa};
use ringvisor::stage2::TableMemory;

use crate::el2::arch;
use crate::el2::sync::Mutex;

const PAGE: usize = PAGE_SIZE as usize;

/// A pool of frames.
pub struct Frames(Mutex<Heap<32>>);

/// Ordinary memory.
pub static NORMAL: Frames = Frames(Mutex::new(Heap::empty()));
/// Memory that EL2 maps non-cacheable, for pages that zones read as device registers.
pub static REGISTERS: Frames = Frames(Mutex::new(Heap::empty()));

/// Returns how many pages the pools hold, and how many of them are in use.
pub fn usage() -> (usize, usize) {
    [&NORMAL, &REGISTERS]
        .into_iter()
        .fold((0, 0), |(total, used), pool| {
            let heap = pool.0.lock();
            (
                total + heap.stats_total_bytes() / PAGE,
                used + heap.stats_alloc_actual() / PAGE,
            )
        })
}

impl Frames {
    /// Adds memory to the pool.
    ///
    /// # Safety
    /// The range must be unused, page-aligned and mapped.
    pub unsafe fn init(&self, start: usize, end: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.0.lock().init(start, end - start) }
    }

    fn layout(pages: usize) -> Option<Layout> {
        let size = pages.checked_next_power_of_two()?.checked_mul(PAGE)?;
        Layout::from_size_align(size, size).ok()
    }

    /// Allocates zeroed frames: a power of two of them, aligned to their size. Returns `None` if there are
    /// none.
    pub fn alloc(&self, pages: usize) -> Option<NonNull<u8>> {
        let layout = Self::layout(pages)?;
        let block = self.0.lock().alloc(layout).ok()?;
        // SAFETY: the block was allocated just now with this layout.
        unsafe { block.as_ptr().write_bytes(0, layout.size()) };
        Some(block)
    }

    /// Frees frames.
    ///
    /// # Safety
    /// `block` must come from `alloc` of this pool with as many pages, and must no longer be in use.
    pub unsafe fn free(&self, block: NonNull<u8>, pages: usize) {
        if let Some(layout) = Self::layout(pages) {
            // SAFETY: the caller's promise.
            unsafe { self.0.lock().dealloc(block, layout) }
        }
    }
}

/// Memory of stage-2 tables: frames of [`NORMAL`].
pub struct Tables;

impl TableMemory for Tables {
    fn alloc(&mut self, pages: usize) -> Option<Pa> {
        let block = NORMAL.alloc(pages)?;
        // A walker that finds this table's descriptor, which is stored next, must find the table empty.
        arch::dsb_ishst();
        Some(Pa(block.as_ptr() as u64))
    }

    fn free(&mut self, table: Pa, pages: usize) {
        if let Some(block) = NonNull::new(table.0 as *mut u8) {
            // SAFETY: a Stage2 frees only what `alloc` above returned, once.
            unsafe { NORMAL.free(block, pages) }
        }
    }

    fn read(&self, table: Pa, index: usize) -> u64 {
        // SAFETY: a Stage2 passes tables of `alloc` and indices below 512; EL2 is identity-mapped.
        unsafe { (table.0 as *const u64).add(index & 511).read_volatile() }
    }

    fn write(&mut self, table: Pa, index: usize, entry: u64) {
        // SAFETY: as for `read`; walkers read entries atomically.
        unsafe { (table.0 as *mut u64).add(index & 511).write_volatile(entry) }
    }
}

/// A `T` in frames of its own: a Box whose allocation may fail.
pub struct FrameBox<T> {
    block: NonNull<T>,
}

// SAFETY: FrameBox owns its T like a Box.
unsafe impl<T: Send> Send for FrameBox<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for FrameBox<T> {}

impl<T> FrameBox<T> {
    /// Pages that a `T` occupies.
    pub const PAGES: usize = size_of::<T>().div_ceil(PAGE).next_power_of_two();

    /// Allocates frames to be filled; returns `None` if there are none.
    pub fn reserve() -> Option<Place<T>> {
        const { assert!(align_of::<T>() <= PAGE) };
        Some(Place {
            block: NORMAL.alloc(Self::PAGES)?.cast::<T>(),
        })
    }
}

/// Frames for a `T` that is not built yet. Dropping it unfilled leaks the frames.
#[must_use]
pub struct Place<T> {
    block: NonNull<T>,
}

impl<T> Place<T> {
    /// Writes `value` into the frames.
    pub fn fill(self, value: T) -> FrameBox<T> {
        // SAFETY: fresh, large enough, aligned.
        unsafe { self.block.as_ptr().write(value) };
        FrameBox { block: self.block }
    }
}

impl<T> Deref for FrameBox<T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: initialised by `Place::fill`, owned until drop.
        unsafe { self.block.as_ref() }
    }
}

impl<T> core::ops::DerefMut for FrameBox<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above, and borrowed mutably.
        unsafe { self.block.as_mut() }
    }
}

impl<T> Drop for FrameBox<T> {
    fn drop(&mut self) {
        // SAFETY: owned; dropped once; the frames came from NORMAL with this many pages.
        unsafe {
            self.block.as_ptr().drop_in_place();
            NORMAL.free(self.block.cast(), Self::PAGES);
        }
    }
}

/// An owned register frame.
pub struct RegisterFrame(NonNull<u8>);

// SAFETY: owns its frame; access is by volatile word stores.
unsafe impl Send for RegisterFrame {}
// SAFETY: as above.
unsafe impl Sync for RegisterFrame {}

impl RegisterFrame {
    /// Allocates a zeroed frame of the non-cacheable pool.
    pub fn new() -> Option<Self> {
        REGISTERS.alloc(1).map(Self)
    }

    /// Returns its physical address.
    pub fn pa(&self) -> Pa {
        Pa(self.0.as_ptr() as u64)
    }

    /// Reads the aligned word at `offset` in bytes; returns 0 for any other offset.
    pub fn get32(&self, offset: usize) -> u32 {
        if offset & 3 != 0 || offset >= PAGE {
            return 0;
        }
        // SAFETY: inside the frame, aligned.
        unsafe { self.0.as_ptr().add(offset).cast::<u32>().read_volatile() }
    }

    /// Writes the aligned word at `offset` in bytes; ignores any other offset.
    pub fn set32(&self, offset: usize, value: u32) {
        if offset & 3 == 0 && offset < PAGE {
            // SAFETY: inside the frame, aligned; zones see it read-only.
            unsafe { self.0.as_ptr().add(offset).cast::<u32>().write_volatile(value) }
        }
    }
}

impl Drop for RegisterFrame {
    fn drop(&mut self) {
        // SAFETY: owned, from REGISTERS.
        unsafe { REGISTERS.free(self.0, 1) }
    }
}
