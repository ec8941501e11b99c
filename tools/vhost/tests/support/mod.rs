//! A minimal client of a vhost-user-blk server, for tests and `examples/load.rs`.
#![allow(dead_code, reason = "each user uses what it needs")]

use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringvhost::front::{Connection, DiskInfo, FrontError, Request, SharedRings, UsedRequest};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vhost::VhostUserMemoryRegionInfo;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Guest-physical start of the client's RAM.
pub const BASE: u64 = 0x4000_0000;
/// Bytes of the client's RAM.
pub const RAM: u64 = 32 << 20;

/// A connected client with its rings and RAM.
pub struct Client {
    pub connection: Connection,
    pub rings: SharedRings,
    pub memory: GuestMemoryMmap,
    pub kicks: Vec<EventFd>,
    pub call: EventFd,
    region: VhostUserMemoryRegionInfo,
    _file: Arc<File>,
}

/// Connects as soon as a server listens.
pub fn connect(socket: &Path) -> UnixStream {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return stream,
            Err(error) if Instant::now() > deadline => panic!("{}: {error}", socket.display()),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

impl Client {
    pub fn new(stream: UnixStream, queues: u16) -> Result<Self, FrontError> {
        let mut client = Self::stopped(stream, queues)?;
        client.start()?;
        Ok(client)
    }

    /// Negotiates, but does not start the queues.
    pub fn stopped(stream: UnixStream, queues: u16) -> Result<Self, FrontError> {
        let connection = Connection::negotiate(stream, queues)?;
        let count = connection.info.queues;
        let rings = SharedRings::new(count, connection.event_idx()).unwrap();
        let file = Arc::new(File::from(memfd_create(c"client", MemfdFlags::CLOEXEC).unwrap()));
        ftruncate(&file, RAM).unwrap();
        let mapping: MmapRegion =
            MmapRegion::from_file(FileOffset::new(file.try_clone().unwrap(), 0), RAM as usize).unwrap();
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: BASE,
            memory_size: RAM,
            userspace_addr: mapping.as_ptr().addr() as u64,
            mmap_offset: 0,
            mmap_handle: file.as_raw_fd(),
        };
        let memory =
            GuestMemoryMmap::from_regions(vec![GuestRegionMmap::new(mapping, GuestAddress(BASE)).unwrap()])
                .unwrap();
        Ok(Self {
            connection,
            rings,
            memory,
            kicks: (0..count).map(|_| EventFd::new(EFD_NONBLOCK).unwrap()).collect(),
            call: EventFd::new(EFD_NONBLOCK).unwrap(),
            region,
            _file: file,
        })
    }

    pub fn start(&mut self) -> Result<(), FrontError> {
        self.connection
            .start(&[self.region], &self.rings, &self.kicks, &self.call)
    }

    pub fn info(&self) -> DiskInfo {
        self.connection.info
    }

    pub fn put(&self, offset: u64, bytes: &[u8]) {
        self.memory
            .write_slice(bytes, GuestAddress(BASE + offset))
            .unwrap();
    }

    pub fn get(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory
            .read_slice(&mut bytes, GuestAddress(BASE + offset))
            .unwrap();
        bytes
    }

    /// Publishes the pushed requests of a queue and kicks the server if necessary.
    pub fn publish(&mut self, queue: usize) {
        if self.rings.rings[queue].publish() {
            self.kicks[queue].write(1).unwrap();
        }
    }

    /// Waits for the next completed request of a queue; `None` on a timeout or if the server is down.
    pub fn next(&mut self, queue: usize, timeout: Duration) -> Option<UsedRequest> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(done) = self.rings.rings[queue].pop().expect("no fault") {
                return Some(done);
            }
            if self.rings.rings[queue].arm() {
                continue;
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            let wait = rustix::time::Timespec::try_from(left).unwrap();
            // SAFETY: open as long as the client.
            let call = unsafe { BorrowedFd::borrow_raw(self.call.as_raw_fd()) };
            let mut fds = [
                PollFd::new(&call, PollFlags::IN),
                PollFd::new(&self.connection.stream, PollFlags::IN),
            ];
            let _ = poll(&mut fds, Some(&wait));
            if !fds[1].revents().is_empty() && fds[0].revents().is_empty() {
                return None;
            }
            let _ = self.call.read();
        }
    }

    /// Runs one request on queue 0.
    pub fn run(&mut self, request: Request, parts: &[(u64, u32)]) -> u8 {
        self.run_on(0, request, parts)
    }

    pub fn run_on(&mut self, queue: usize, request: Request, parts: &[(u64, u32)]) -> u8 {
        assert!(self.rings.rings[queue].push(77, request, parts));
        self.publish(queue);
        let done = self.next(queue, Duration::from_secs(20)).expect("an answer");
        assert_eq!(done.token, 77);
        done.status
    }
}
