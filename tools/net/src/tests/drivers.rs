//! The network driver of the `virtio-drivers` crate as the guest, on a transport that adds its queues to a
//! reactor, with a real port behind.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::ptr::NonNull;
use std::sync::Arc;

use ringvirtio::{
    GuestRam, InflightArea, QueueId, QueueSetup, Reactor, ReactorHandle, ReactorOptions, RingAddresses,
};
use virtio_drivers::device::net::VirtIONetRaw;
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, MmapRegion};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::ports::{arp, bring_up, own_network};
use super::rig::{BASE, MAC, RAM, config};
use crate::port::HEADER;
use crate::{Net, Port, QUEUE_SIZE_MAX, Stream, Tap, tap};

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
    net: Arc<Net>,
    handle: ReactorHandle,
    log: Arc<MmapRegion>,
    status: DeviceStatus,
    features: u64,
    queues: BTreeMap<u16, QueueId>,
}

impl Transport for FakeTransport {
    fn device_type(&self) -> DeviceType {
        DeviceType::Network
    }

    fn read_device_features(&mut self) -> u64 {
        self.net.features()
    }

    fn write_driver_features(&mut self, accepted: u64) {
        assert_eq!(accepted & !self.net.features(), 0);
        self.features = accepted;
    }

    fn max_queue_size(&mut self, _queue: u16) -> u32 {
        QUEUE_SIZE_MAX.into()
    }

    fn notify(&mut self, queue: u16) {
        self.handle.schedule(self.queues[&queue]);
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
                offset: usize::from(queue) * 8192,
            },
            epoch: 1,
            notify_driver: Box::new(|| {}),
            needs_reset: Box::new(|fault| panic!("a well-behaved driver broke the queue: {fault}")),
        };
        let (handler, _) = self.net.queue(queue, setup).unwrap();
        self.queues.insert(queue, self.handle.add(handler));
    }

    fn queue_unset(&mut self, queue: u16) {
        if let Some(id) = self.queues.remove(&queue) {
            let (sender, receiver) = std::sync::mpsc::channel();
            self.handle.remove(id, Box::new(move || sender.send(()).unwrap()));
            receiver.recv().unwrap();
        }
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        self.queues.contains_key(&queue)
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        InterruptStatus::QUEUE_INTERRUPT
    }

    fn read_config_generation(&self) -> u32 {
        0
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> virtio_drivers::Result<T> {
        let space = self.net.config().space(self.net.status());
        T::read_from_bytes(&space[offset..offset + size_of::<T>()])
            .map_err(|_| virtio_drivers::Error::ConfigSpaceTooSmall)
    }

    fn write_config_space<T: IntoBytes + Immutable>(&mut self, _: usize, _: T) -> virtio_drivers::Result<()> {
        Err(virtio_drivers::Error::ConfigSpaceTooSmall)
    }
}

/// Runs `guest` with a driver of a device with this port, on a reactor with io_uring and on one without.
fn with_driver(port: impl Fn() -> Arc<dyn Port>, guest: impl Fn(&mut VirtIONetRaw<Ram, FakeTransport, 16>)) {
    for io_uring in [true, false] {
        let (reactor, handle) = Reactor::new(ReactorOptions {
            io_uring,
            ..ReactorOptions::default()
        })
        .unwrap();
        let thread = std::thread::spawn(move || reactor.run().unwrap());
        let port = port();
        let net = Net::new(config(1), port.offloads(), None);
        net.attach(port).unwrap();
        let transport = FakeTransport {
            net,
            handle: handle.clone(),
            log: Arc::new(MmapRegion::new(8192 * 3).unwrap()),
            status: DeviceStatus::empty(),
            features: 0,
            queues: BTreeMap::new(),
        };
        let mut driver = VirtIONetRaw::<Ram, _, 16>::new(transport).unwrap();
        assert_eq!(driver.mac_address(), MAC.0);
        guest(&mut driver);
        drop(driver);
        handle.stop();
        thread.join().unwrap();
    }
}

/// Waits for a frame for which `wanted` holds.
fn receive(driver: &mut VirtIONetRaw<Ram, FakeTransport, 16>, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    loop {
        let mut buffer = vec![0; 2048];
        let (header, len) = driver.receive_wait(&mut buffer).unwrap();
        assert_eq!(header, HEADER);
        let frame = buffer[header..header + len].to_vec();
        if wanted(&frame) {
            return frame;
        }
    }
}

/// An echo behind the stream: what the guest sends comes back, frames of many sizes.
#[test]
fn a_driver_and_a_stream() {
    let port = || {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = theirs.read(&mut bytes) {
                if theirs.write_all(&bytes[..count]).is_err() {
                    break;
                }
            }
        });
        Arc::new(Stream::new(ours.into()).unwrap()) as Arc<dyn Port>
    };
    with_driver(port, |driver| {
        for round in 0..60_usize {
            let frame: Vec<u8> = (0..14 + round * 31 % 1500)
                .map(|byte| (byte ^ round) as u8)
                .collect();
            driver.send(&frame).unwrap();
            assert!(receive(driver, |_| true) == frame);
        }
    });
}

/// The internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    (!((folded & 0xffff) + (folded >> 16)) as u16).to_be_bytes()
}

/// An echo request of 10.0.0.2 to 10.0.0.1.
fn ping(to: &[u8], sequence: u16, len: usize) -> Vec<u8> {
    let mut echo = vec![8, 0, 0, 0, 0, 1];
    echo.extend(sequence.to_be_bytes());
    echo.extend((0..len).map(|byte| byte as u8));
    let sum = checksum(&echo);
    echo[2..4].copy_from_slice(&sum);
    let mut ip = vec![0x45, 0];
    ip.extend((20 + echo.len() as u16).to_be_bytes());
    ip.extend([0, 0, 0x40, 0, 64, 1, 0, 0, 10, 0, 0, 2, 10, 0, 0, 1]);
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum);
    [to, &MAC.0, &[8, 0], &ip, &echo].concat()
}

/// The host's kernel answers a guest's pings over a tap.
#[test]
fn a_driver_and_a_tap() {
    if !own_network() {
        return;
    }
    let port = || {
        let queues = tap::open("tap0", 1).unwrap();
        bring_up("tap0", [10, 0, 0, 1]);
        Arc::new(Tap::new(queues).unwrap()) as Arc<dyn Port>
    };
    with_driver(port, |driver| {
        driver.send(&arp(MAC.0, [10, 0, 0, 1])).unwrap();
        let reply = receive(driver, |frame| frame[12..14] == [8, 6] && frame[21] == 2);
        let host = &reply[6..12];
        for sequence in 0..40 {
            let len = usize::from(sequence) * 37 % 1400;
            driver.send(&ping(host, sequence, len)).unwrap();
            let reply = receive(driver, |frame| frame[12..14] == [8, 0] && frame[34] == 0);
            assert_eq!(reply[40..42], sequence.to_be_bytes());
            assert_eq!(reply.len(), 42 + len);
            assert_eq!(checksum(&reply[34..]), [0, 0]);
        }
    });
}
