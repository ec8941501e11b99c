//! Memory for virtio-drivers: a pool of pages, and buffers shared as they are, since all memory is mapped
//! 1:1.

use core::cell::UnsafeCell;
use core::ptr::NonNull;

use spin::Mutex;
use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};

const PAGES: usize = 64;

#[repr(C, align(4096))]
struct Pool(UnsafeCell<[[u8; PAGE_SIZE]; PAGES]>);

// SAFETY: a page belongs to the caller that set its bit in USED.
unsafe impl Sync for Pool {}

static POOL: Pool = Pool(UnsafeCell::new([[0; PAGE_SIZE]; PAGES]));
/// A bit for each allocated page.
static USED: Mutex<u64> = Mutex::new(0);

/// The [`Hal`] of this guest.
pub struct GuestHal;

/// Allocates contiguous zeroed pages, or returns `None`.
pub fn allocate(pages: usize) -> Option<NonNull<u8>> {
    let mask = 1_u64.checked_shl(pages as u32)?.wrapping_sub(1);
    let mut used = USED.lock();
    let first = (0..=PAGES.checked_sub(pages)?).find(|first| *used & mask << first == 0)?;
    *used |= mask << first;
    let page = POOL.0.get().cast::<u8>().wrapping_add(first * PAGE_SIZE);
    // SAFETY: the pages are in the pool and were just allocated.
    unsafe { page.write_bytes(0, pages * PAGE_SIZE) };
    NonNull::new(page)
}

/// Frees pages.
pub fn free(page: NonNull<u8>, pages: usize) {
    let first = (page.as_ptr() as usize - POOL.0.get() as usize) / PAGE_SIZE;
    let mask = (1_u64 << pages).wrapping_sub(1);
    *USED.lock() &= !(mask << first);
}

// SAFETY: pages are aligned, zeroed and not allocated twice; addresses are mapped 1:1.
unsafe impl Hal for GuestHal {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        match allocate(pages) {
            Some(page) => (page.as_ptr() as PhysAddr, page),
            None => (0, NonNull::dangling()),
        }
    }

    unsafe fn dma_dealloc(_: PhysAddr, vaddr: NonNull<u8>, pages: usize) -> i32 {
        free(vaddr, pages);
        0
    }

    unsafe fn mmio_phys_to_virt(paddr: PhysAddr, _: usize) -> NonNull<u8> {
        NonNull::new(paddr as *mut u8).unwrap_or(NonNull::dangling())
    }

    unsafe fn share(buffer: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
        buffer.cast::<u8>().as_ptr() as PhysAddr
    }

    unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _: BufferDirection) {}
}
