//! The entropy driver of the `virtio-drivers` crate as the guest, on a transport that adds its queues to a
//! reactor.

use std::cell::RefCell;
use std::ptr::NonNull;
use std::sync::Arc;

use ringvirtio::{
    GuestRam, InflightArea, QueueId, QueueSetup, Reactor, ReactorHandle, ReactorOptions, RingAddresses,
};
use virtio_drivers::device::rng::VirtIORng;
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, MmapRegion};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::rig::{BASE, RAM};
use crate::{MAX_BYTES, QUEUE_SIZE_MAX, Rng, RngQueue, features};

/// The RAM of the guest in this thread, by pages: `true` is allocated.
struct Arena {
    memory: GuestMemoryMmap,
    pages: Vec<bool>,
}

thread_local! {
    static ARENA: RefCell<Arena> = RefCell::new(Arena {
        memory: GuestMemoryMmap::from_ranges(&[(GuestAddress(BASE), RAM)]).unwrap(),
        pages: vec![false; RAM / PAGE_SIZE],
    });
}

fn memory() -> GuestMemoryMmap {
    ARENA.with_borrow(|arena| arena.memory.clone())
}

fn host(addr: PhysAddr) -> NonNull<u8> {
    NonNull::new(memory().get_host_address(GuestAddress(addr)).unwrap()).unwrap()
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

struct Ram;

// SAFETY: pages come from a mapping that lives as long as the thread, each to one owner at a time.
unsafe impl Hal for Ram {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let addr = allocate(pages);
        // SAFETY: these pages are mapped and no other owner's.
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

/// The transport without EL2: creates queues as the daemon does.
struct FakeTransport {
    rng: Arc<Rng>,
    handle: ReactorHandle,
    log: Arc<MmapRegion>,
    status: DeviceStatus,
    features: u64,
    epoch: u64,
    queue: Option<QueueId>,
}

impl Transport for FakeTransport {
    fn device_type(&self) -> DeviceType {
        DeviceType::EntropySource
    }

    fn read_device_features(&mut self) -> u64 {
        features()
    }

    fn write_driver_features(&mut self, accepted: u64) {
        assert_eq!(accepted & !features(), 0);
        self.features = accepted;
    }

    fn max_queue_size(&mut self, _queue: u16) -> u32 {
        QUEUE_SIZE_MAX.into()
    }

    fn notify(&mut self, _queue: u16) {
        self.handle.schedule(self.queue.unwrap());
    }

    fn get_status(&self) -> DeviceStatus {
        self.status
    }

    fn set_status(&mut self, status: DeviceStatus) {
        self.status = status;
    }

    fn set_guest_page_size(&mut self, _size: u32) {}

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn queue_set(&mut self, queue: u16, size: u32, desc: PhysAddr, driver: PhysAddr, device: PhysAddr) {
        assert_eq!(queue, 0);
        self.epoch += 1;
        let setup = QueueSetup {
            ram: GuestRam::new(memory()).unwrap(),
            ring: RingAddresses {
                size: size as u16,
                desc: GuestAddress(desc),
                avail: GuestAddress(driver),
                used: GuestAddress(device),
            },
            features: self.features,
            inflight: InflightArea {
                mapping: self.log.clone(),
                offset: 0,
            },
            epoch: self.epoch,
            notify_driver: Box::new(|| {}),
            needs_reset: Box::new(|fault| panic!("a well-behaved driver broke the queue: {fault}")),
        };
        let queue = RngQueue::new(self.rng.clone(), setup).unwrap();
        self.queue = Some(self.handle.add(Box::new(queue)));
    }

    fn queue_unset(&mut self, _queue: u16) {
        if let Some(id) = self.queue.take() {
            let (sender, receiver) = std::sync::mpsc::channel();
            self.handle.remove(id, Box::new(move || sender.send(()).unwrap()));
            receiver.recv().unwrap();
        }
    }

    fn queue_used(&mut self, _queue: u16) -> bool {
        self.queue.is_some()
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        InterruptStatus::QUEUE_INTERRUPT
    }

    fn read_config_generation(&self) -> u32 {
        0
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, _: usize) -> virtio_drivers::Result<T> {
        Err(virtio_drivers::Error::ConfigSpaceMissing)
    }

    fn write_config_space<T: IntoBytes + Immutable>(&mut self, _: usize, _: T) -> virtio_drivers::Result<()> {
        Err(virtio_drivers::Error::ConfigSpaceMissing)
    }
}

#[test]
fn a_driver_gets_random_bytes() {
    for io_uring in [true, false] {
        let (reactor, handle) = Reactor::new(ReactorOptions {
            io_uring,
            ..ReactorOptions::default()
        })
        .unwrap();
        let thread = std::thread::spawn(move || reactor.run().unwrap());
        let transport = FakeTransport {
            rng: Rng::new(),
            handle: handle.clone(),
            log: Arc::new(MmapRegion::new(8192).unwrap()),
            status: DeviceStatus::empty(),
            features: 0,
            epoch: 0,
            queue: None,
        };
        let mut driver = VirtIORng::<Ram, _>::new(transport).unwrap();
        let (mut ones, mut total) = (0, 0);
        for round in 0..500 {
            let mut bytes = vec![0; 1 + round % 300];
            let filled = driver.request_entropy(&mut bytes).unwrap();
            assert_eq!(filled, bytes.len().min(MAX_BYTES));
            ones += bytes[..filled].iter().map(|byte| byte.count_ones()).sum::<u32>();
            total += filled as u32 * 8;
        }
        // Half of some 500 000 bits, within 20 standard deviations.
        assert!(
            (ones as f64 / total as f64 - 0.5).abs() < 0.015,
            "{ones} of {total}"
        );
        drop(driver);
        handle.stop();
        thread.join().unwrap();
    }
}
