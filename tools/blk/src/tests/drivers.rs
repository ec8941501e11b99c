//! The block driver of the `virtio-drivers` crate as the guest, on a transport that adds its queues to a
//! reactor.

use std::cell::RefCell;
use std::ptr::NonNull;
use std::sync::Arc;

use ringvirtio::inflight::InflightArea;
use ringvirtio::memory::GuestRam;
use ringvirtio::ring::RingAddresses;
use ringvirtio::{QueueId, QueueSetup, Reactor, ReactorHandle, ReactorOptions};
use virtio_drivers::device::blk::{BlkReq, BlkResp, SECTOR_SIZE, VirtIOBlk};
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, MmapRegion};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::rig::{BASE, ENGINES, RAM, Rig, SECTORS, open_soon, pattern};
use crate::device;
use crate::disk::{Disk, EngineKind};
use crate::queue::BlockQueue;

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

/// The transport without EL2: creates queues as the daemon does.
struct FakeTransport {
    disk: Arc<Disk>,
    handle: ReactorHandle,
    log: Arc<MmapRegion>,
    status: DeviceStatus,
    features: u64,
    epoch: u64,
    queue: Option<QueueId>,
}

impl Transport for FakeTransport {
    fn device_type(&self) -> DeviceType {
        DeviceType::Block
    }

    fn read_device_features(&mut self) -> u64 {
        device::features(&self.disk, 1)
    }

    fn write_driver_features(&mut self, features: u64) {
        assert_eq!(features & !device::features(&self.disk, 1), 0);
        self.features = features;
    }

    fn max_queue_size(&mut self, _queue: u16) -> u32 {
        device::QUEUE_SIZE_MAX.into()
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
        self.queue = Some(
            self.handle
                .add(Box::new(BlockQueue::new(self.disk.clone(), setup).unwrap())),
        );
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

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> virtio_drivers::Result<T> {
        let config = device::config(&self.disk, device::QUEUE_SIZE_MAX, 1);
        Ok(T::read_from_prefix(&config[offset..]).unwrap().0)
    }

    fn write_config_space<T: IntoBytes + Immutable>(&mut self, _: usize, _: T) -> virtio_drivers::Result<()> {
        Ok(())
    }
}

/// Runs `test` with a driver on a disk of this kind.
fn with_driver(io_uring: bool, rig: &Rig, test: impl FnOnce(&mut VirtIOBlk<Ram, FakeTransport>)) {
    let (reactor, handle) = Reactor::new(ReactorOptions {
        io_uring,
        ..ReactorOptions::default()
    })
    .unwrap();
    let thread = std::thread::spawn(move || reactor.run().unwrap());
    let transport = FakeTransport {
        disk: open_soon(&rig.config),
        handle: handle.clone(),
        log: Arc::new(MmapRegion::new(8192).unwrap()),
        status: DeviceStatus::empty(),
        features: 0,
        epoch: 0,
        queue: None,
    };
    test(&mut VirtIOBlk::new(transport).unwrap());
    handle.stop();
    thread.join().unwrap();
}

// virtio-checklist 37, 51, 59, 62; torture e1 on a small scale: random sectors and sizes against a model
#[test]
fn reads_back_what_it_wrote() {
    for (io_uring, kind) in [
        (true, EngineKind::IoUring),
        (true, EngineKind::Threads),
        (false, EngineKind::Threads),
    ] {
        let rig = Rig::closed(kind, 16, 0, false);
        let mut model = rig.image();
        with_driver(io_uring, &rig, |driver| {
            assert_eq!((driver.capacity(), driver.readonly()), (SECTORS, false));
            let mut id = [0xff; 20];
            assert_eq!(driver.device_id(&mut id).unwrap(), 8);
            assert_eq!(&id[..9], b"serial-0\0");
            let mut seed = 42_u32;
            for round in 0..500_u32 {
                seed = seed.wrapping_mul(1664525).wrapping_add(1013904223);
                let count = 1 + (seed >> 28) as usize;
                let sector = (seed >> 8) as usize % (SECTORS as usize - count);
                let range = sector * SECTOR_SIZE..(sector + count) * SECTOR_SIZE;
                let mut bytes = vec![round as u8; count * SECTOR_SIZE];
                if seed & 0x10 == 0 {
                    driver.write_blocks(sector, &bytes).unwrap();
                    model[range].copy_from_slice(&bytes);
                } else {
                    driver.read_blocks(sector, &mut bytes).unwrap();
                    assert!(bytes == model[range]);
                }
                if round % 50 == 0 {
                    driver.flush().unwrap();
                }
            }
        });
        assert!(rig.image() == model);
    }
}

// Requests in flight together complete in any order.
#[test]
fn several_at_once() {
    for kind in ENGINES {
        let rig = Rig::closed(kind, 16, 0, false);
        with_driver(true, &rig, |driver| {
            for _ in 0..100 {
                let mut parts: Vec<_> = (0..8)
                    .map(|_| (BlkReq::default(), BlkResp::default(), [0; SECTOR_SIZE], None))
                    .collect();
                for (sector, (request, response, buffer, token)) in parts.iter_mut().enumerate() {
                    // SAFETY: the parts are not touched before they are completed below.
                    *token = Some(
                        unsafe { driver.read_blocks_nb(sector * 3, request, buffer, response) }.unwrap(),
                    );
                }
                for _ in 0..8 {
                    let token = loop {
                        match driver.peek_used() {
                            Some(token) => break token,
                            None => std::hint::spin_loop(),
                        }
                    };
                    let (sector, (request, response, buffer, _)) = parts
                        .iter_mut()
                        .enumerate()
                        .find(|(_, part)| part.3 == Some(token))
                        .unwrap();
                    // SAFETY: the same parts as given with this token.
                    unsafe { driver.complete_read_blocks(token, request, buffer, response) }.unwrap();
                    let expected: Vec<u8> = (0..512)
                        .map(|byte| pattern(sector as u64 * 1536 + byte))
                        .collect();
                    assert_eq!(buffer[..], expected);
                }
            }
        });
    }
}

// virtio-checklist 55, 63
#[test]
fn a_driver_gets_errors() {
    let mut rig = Rig::closed(EngineKind::IoUring, 16, 0, true);
    with_driver(true, &rig, |driver| {
        assert!(driver.readonly());
        assert!(driver.write_blocks(0, &[0; 512]).is_err());
        assert!(driver.read_blocks(SECTORS as usize, &mut [0; 512]).is_err());
        assert!(driver.read_blocks(0, &mut [0; 512]).is_ok());
    });
    rig.config.readonly = false;
    with_driver(true, &rig, |driver| {
        assert!(driver.write_blocks(0, &[0; 512]).is_ok())
    });
}
