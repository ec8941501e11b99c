//! Guest RAM, and the `Hal` by which `virtio-drivers` allocates from it.
//!
//! One arena per thread, because the crate asks for memory through functions without a receiver. Buffers that
//! are shared with the device are copied in and out, as with a bounce buffer, so every byte that the device
//! may touch is in the arena.

use std::cell::RefCell;
use std::ptr::NonNull;
use std::sync::Arc;

use ringvirtio::GuestRam;
use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// Where RAM begins.
pub const BASE: u64 = 0x4000_0000;
/// Bytes of RAM.
pub const SIZE: usize = 256 << 10;
/// Unit of allocation, in bytes.
const GRANULE: usize = 64;

struct Arena {
    memory: GuestMemoryMmap,
    host: NonNull<u8>,
    /// The owner of each granule: a queue's number plus one, or 0 if it is free.
    owners: Vec<u8>,
    /// The owner of the next allocations.
    owner: u8,
    /// Where the next search begins.
    next: usize,
}

thread_local! {
    static ARENA: RefCell<Arena> = RefCell::new(Arena::new());
}

impl Arena {
    fn new() -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(BASE), SIZE)])
            .expect("the system has memory for a small guest");
        let host = memory
            .get_host_address(GuestAddress(BASE))
            .expect("RAM was mapped there");
        Self {
            memory,
            host: NonNull::new(host).expect("mappings are not at address 0"),
            owners: vec![0; SIZE / GRANULE],
            owner: 1,
            next: 0,
        }
    }

    fn allocate(&mut self, bytes: usize, align: usize) -> PhysAddr {
        let count = bytes.div_ceil(GRANULE).max(1);
        let step = align / GRANULE;
        let total = self.owners.len();
        for attempt in 0..total {
            let first = (self.next + attempt) % total;
            if !first.is_multiple_of(step.max(1)) || first + count > total {
                continue;
            }
            if self.owners[first..first + count].iter().all(|owner| *owner == 0) {
                self.owners[first..first + count].fill(self.owner);
                self.next = first + count;
                return BASE + (first * GRANULE) as u64;
            }
        }
        panic!("the guest's RAM is full");
    }

    fn release(&mut self, addr: PhysAddr, bytes: usize) {
        let first = (addr - BASE) as usize / GRANULE;
        self.owners[first..first + bytes.div_ceil(GRANULE).max(1)].fill(0);
    }

    fn at(&self, addr: PhysAddr) -> NonNull<u8> {
        let offset = (addr - BASE) as usize;
        assert!(offset < SIZE);
        // SAFETY: the offset is inside of the mapping.
        unsafe { self.host.add(offset) }
    }
}

/// Zeroes and frees all RAM. Queues of an earlier run must no longer be used.
pub fn clear() {
    ARENA.with_borrow_mut(|arena| {
        arena.owners.fill(0);
        arena.next = 0;
        // SAFETY: the whole mapping; no queue of an earlier run is used any more.
        unsafe { arena.host.write_bytes(0, SIZE) };
    });
}

/// Makes a queue the owner of the next allocations.
pub fn set_owner(queue: usize) {
    ARENA.with_borrow_mut(|arena| arena.owner = queue as u8 + 1);
}

/// Frees all memory that a queue owns. Its content stays.
pub fn release_queue(queue: usize) {
    let owned = queue as u8 + 1;
    ARENA.with_borrow_mut(|arena| {
        let owners = arena.owners.iter_mut().filter(|owner| **owner == owned);
        owners.for_each(|owner| *owner = 0);
    });
}

/// Returns guest RAM as the daemon maps it.
pub fn guest_ram() -> Arc<GuestRam> {
    ARENA.with_borrow(|arena| GuestRam::new(arena.memory.clone()).expect("RAM is mapped"))
}

/// Returns the host addresses of RAM: the first, and the end.
pub fn host_range() -> (usize, usize) {
    ARENA.with_borrow(|arena| {
        let first = arena.host.as_ptr() as usize;
        (first, first + SIZE)
    })
}

/// Returns a copy of all RAM.
#[must_use]
pub fn snapshot() -> Vec<u8> {
    ARENA.with_borrow(|arena| {
        let mut copy = vec![0; SIZE];
        // SAFETY: both are that long; the copy is new.
        unsafe {
            copy.as_mut_ptr()
                .copy_from_nonoverlapping(arena.host.as_ptr(), SIZE)
        };
        copy
    })
}

/// Returns a copy of all memory that a queue owns.
pub fn snapshot_of_queue(queue: usize) -> Vec<u8> {
    let all = snapshot();
    ARENA.with_borrow(|arena| {
        let owners = arena.owners.iter().zip(all.chunks(GRANULE));
        let owned = owners.filter(|(owner, _)| **owner == queue as u8 + 1);
        owned.flat_map(|(_, bytes)| bytes.iter().copied()).collect()
    })
}

/// Stores a byte at `offset` in RAM, as a second vCPU does.
pub fn poke(offset: usize, byte: u8) {
    assert!(offset < SIZE);
    ARENA.with_borrow(|arena| {
        // SAFETY: inside of the mapping; the device expects the guest to write anywhere at any time.
        unsafe { arena.host.add(offset).write_volatile(byte) };
    });
}

/// Returns whether the granule at `offset` is allocated.
pub fn in_use(offset: usize) -> bool {
    ARENA.with_borrow(|arena| {
        arena
            .owners
            .get(offset / GRANULE)
            .is_some_and(|owner| *owner != 0)
    })
}

/// The HAL of `virtio-drivers` on guest RAM.
pub struct SimHal;

// SAFETY: memory comes from a mapping that lives as long as the thread, each piece to one owner at a time.
unsafe impl Hal for SimHal {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        ARENA.with_borrow_mut(|arena| {
            let addr = arena.allocate(pages * PAGE_SIZE, PAGE_SIZE);
            let host = arena.at(addr);
            // SAFETY: these pages are mapped and were just allocated.
            unsafe { host.write_bytes(0, pages * PAGE_SIZE) };
            (addr, host)
        })
    }

    unsafe fn dma_dealloc(paddr: PhysAddr, _vaddr: NonNull<u8>, pages: usize) -> i32 {
        ARENA.with_borrow_mut(|arena| arena.release(paddr, pages * PAGE_SIZE));
        0
    }

    unsafe fn mmio_phys_to_virt(paddr: PhysAddr, _size: usize) -> NonNull<u8> {
        ARENA.with_borrow(|arena| arena.at(paddr))
    }

    unsafe fn share(buffer: NonNull<[u8]>, direction: BufferDirection) -> PhysAddr {
        ARENA.with_borrow_mut(|arena| {
            let addr = arena.allocate(buffer.len(), GRANULE);
            let host = arena.at(addr);
            if direction == BufferDirection::DeviceToDriver {
                // Poison: a byte that the device must fill and does not is noticed.
                // SAFETY: just allocated with that length.
                unsafe { host.write_bytes(0xa5, buffer.len()) };
            } else {
                // SAFETY: both ranges are valid for that length, and distinct.
                unsafe { host.copy_from_nonoverlapping(buffer.cast(), buffer.len()) };
            }
            addr
        })
    }

    unsafe fn unshare(paddr: PhysAddr, buffer: NonNull<[u8]>, direction: BufferDirection) {
        ARENA.with_borrow_mut(|arena| {
            if direction != BufferDirection::DriverToDevice {
                // SAFETY: as above.
                unsafe {
                    buffer
                        .cast()
                        .copy_from_nonoverlapping(arena.at(paddr), buffer.len())
                };
            }
            arena.release(paddr, buffer.len());
        });
    }
}
