//! [`Ram`]: guest RAM of the current thread, and the `Hal` by which `virtio-drivers` allocates from it.

use std::cell::RefCell;
use std::ptr::NonNull;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// Where it begins.
pub const BASE: u64 = 0x4000_0000;
/// Its bytes.
pub const SIZE: usize = 8 << 20;

/// RAM by pages: `true` is allocated.
struct Arena {
    memory: GuestMemoryMmap,
    pages: Vec<bool>,
}

thread_local! {
    static ARENA: RefCell<Arena> = RefCell::new(Arena {
        memory: shared_memory(),
        pages: vec![false; SIZE / PAGE_SIZE],
    });
}

/// Returns RAM that another process can map.
fn shared_memory() -> GuestMemoryMmap {
    let file = memfd_create(c"guest", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, SIZE as u64).unwrap();
    let file = FileOffset::new(file.into(), 0);
    GuestMemoryMmap::from_ranges_with_files([(GuestAddress(BASE), SIZE, Some(file))]).unwrap()
}

/// Returns the RAM of the guest in this thread.
#[must_use]
pub fn guest_memory() -> GuestMemoryMmap {
    ARENA.with_borrow(|arena| arena.memory.clone())
}

fn host(addr: PhysAddr) -> NonNull<u8> {
    NonNull::new(guest_memory().get_host_address(GuestAddress(addr)).unwrap()).unwrap()
}

fn allocate(pages: usize) -> PhysAddr {
    ARENA.with_borrow_mut(|arena| {
        let first = arena
            .pages
            .windows(pages)
            .position(|run| run.iter().all(|taken| !taken))
            .expect("guest RAM is full");
        arena.pages[first..first + pages].fill(true);
        BASE + (first * PAGE_SIZE) as u64
    })
}

fn release(addr: PhysAddr, pages: usize) {
    let first = (addr - BASE) as usize / PAGE_SIZE;
    ARENA.with_borrow_mut(|arena| arena.pages[first..first + pages].fill(false));
}

/// The HAL of `virtio-drivers` on the RAM of the current thread. Buffers that are shared with the device are
/// copied in and out, as with a bounce buffer.
pub struct Ram;

// SAFETY: pages come from a mapping that lives as long as the thread, each to one owner at a time.
unsafe impl Hal for Ram {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let addr = allocate(pages);
        // SAFETY: these pages are mapped and were just allocated.
        unsafe { host(addr).write_bytes(0, pages * PAGE_SIZE) };
        (addr, host(addr))
    }

    unsafe fn dma_dealloc(paddr: PhysAddr, _vaddr: NonNull<u8>, pages: usize) -> i32 {
        release(paddr, pages);
        0
    }

    unsafe fn mmio_phys_to_virt(paddr: PhysAddr, _size: usize) -> NonNull<u8> {
        host(paddr)
    }

    unsafe fn share(buffer: NonNull<[u8]>, direction: BufferDirection) -> PhysAddr {
        let addr = allocate(buffer.len().div_ceil(PAGE_SIZE));
        if direction != BufferDirection::DeviceToDriver {
            // SAFETY: both ranges are valid for that length, and distinct.
            unsafe { host(addr).copy_from_nonoverlapping(buffer.cast(), buffer.len()) };
        }
        addr
    }

    unsafe fn unshare(paddr: PhysAddr, buffer: NonNull<[u8]>, direction: BufferDirection) {
        if direction != BufferDirection::DriverToDevice {
            // SAFETY: as above.
            unsafe { buffer.cast().copy_from_nonoverlapping(host(paddr), buffer.len()) };
        }
        release(paddr, buffer.len().div_ceil(PAGE_SIZE));
    }
}
