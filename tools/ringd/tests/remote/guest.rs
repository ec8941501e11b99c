//! The daemon's reactor, and a guest with one queue: `ringvhost`'s driver in its own RAM.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ringblk::{BlockQueue, Disk, DiskConfig, OpenContext, OpenOptions, device};
use ringvhost::front::{Driver, DriverRing, Request};
use ringvirtio::{
    GuestRam, InflightArea, QueueId, QueueSetup, Reactor, ReactorHandle, ReactorOptions, RingAddresses,
};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use crate::support::{BASE, RAM};

/// Offset of the guest's buffers in its RAM, behind the ring.
pub const BUFFERS: u64 = 1 << 20;
/// Time after which a test has hung.
pub const TEST_TIMEOUT: Duration = Duration::from_secs(60);
/// Timeout for a server's reply. Servers run on the same, possibly slow machine.
pub const SERVER_TIMEOUT: Duration = Duration::from_secs(2);

pub fn open(socket: &Path) -> Result<Arc<Disk>, String> {
    open_with(socket, &OpenOptions::default())
}

pub fn open_with(socket: &Path, options: &OpenOptions) -> Result<Arc<Disk>, String> {
    let config = DiskConfig {
        path: format!("vhost-user:{}", socket.display()).into(),
        ..DiskConfig::default()
    };
    Disk::open_with(&config, &context(), options).map_err(|error| error.to_string())
}

/// Opens remote disks by connecting to their servers.
pub fn context() -> OpenContext {
    let reach = |path: &Path| UnixStream::connect(path);
    OpenContext {
        connector: Some(Arc::new(
            Driver::new(Arc::new(reach)).with_timeout(SERVER_TIMEOUT),
        )),
        ..OpenContext::default()
    }
}

/// A guest with one queue, and the daemon's reactor.
pub struct Guest {
    ring: DriverRing,
    memory: GuestMemoryMmap,
    ram: Arc<GuestRam>,
    log: Arc<MmapRegion>,
    handle: ReactorHandle,
    thread: Option<JoinHandle<()>>,
    id: Option<QueueId>,
    interrupts: Option<Receiver<()>>,
}

impl Guest {
    pub fn new(io_uring: bool) -> Self {
        let file = tempfile::tempfile().unwrap();
        file.set_len(RAM).unwrap();
        let map = || {
            let offset = FileOffset::new(file.try_clone().unwrap(), 0);
            MmapRegion::<()>::from_file(offset, RAM as usize).unwrap()
        };
        let ring = DriverRing::new(&Arc::new(map()), 0, BASE, true).unwrap();
        let region = GuestRegionMmap::new(map(), GuestAddress(BASE)).unwrap();
        let memory = GuestMemoryMmap::from_regions(vec![region]).unwrap();
        let options = ReactorOptions {
            io_uring,
            ..ReactorOptions::default()
        };
        let (reactor, handle) = Reactor::new(options).unwrap();
        Self {
            ring,
            ram: GuestRam::new(memory.clone()).unwrap(),
            memory,
            log: Arc::new(MmapRegion::new(InflightArea::bytes(128).next_multiple_of(4096)).unwrap()),
            handle,
            thread: Some(std::thread::spawn(move || reactor.run().unwrap())),
            id: None,
            interrupts: None,
        }
    }

    pub fn use_disk(&mut self, disk: Arc<Disk>) {
        let [desc, avail, used] = DriverRing::areas().map(|offset| GuestAddress(BASE + offset as u64));
        let (raise, interrupts) = channel();
        let setup = QueueSetup {
            features: device::features(&disk, 1),
            ram: self.ram.clone(),
            ring: RingAddresses {
                size: 128,
                desc,
                avail,
                used,
            },
            inflight: InflightArea {
                mapping: self.log.clone(),
                offset: 0,
            },
            epoch: 1,
            notify_driver: Box::new(move || {
                let _ = raise.send(());
            }),
            needs_reset: Box::new(|fault| panic!("{fault}")),
        };
        let queue = Box::new(BlockQueue::new(disk, setup).unwrap());
        self.interrupts = Some(interrupts);
        self.id = Some(self.handle.add(queue));
    }

    pub fn push(&mut self, token: u64, request: Request, parts: &[(u64, u32)]) {
        assert!(self.ring.push(token, request, parts));
    }

    pub fn publish(&mut self) {
        if self.ring.publish() {
            self.handle.schedule(self.id.unwrap());
        }
    }

    /// Waits for the next completion: its token and status, or `None` after `timeout`.
    pub fn next(&mut self, timeout: Duration) -> Option<(u64, u8)> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(done) = self.ring.pop().expect("no request completes twice") {
                return Some((done.token, done.status));
            }
            if !self.ring.arm() {
                let left = deadline.checked_duration_since(Instant::now())?;
                let _ = self.interrupts.as_ref().unwrap().recv_timeout(left);
            }
        }
    }

    pub fn run(&mut self, request: Request, parts: &[(u64, u32)]) -> u8 {
        self.push(0, request, parts);
        self.publish();
        self.next(TEST_TIMEOUT).expect("a completion").1
    }

    pub fn put(&self, at: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    pub fn get(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    /// Removes the queue and waits for it, as a reset, a stop of the zone and a change of the disk do.
    pub fn remove(&mut self) {
        let (sender, gone) = channel();
        let id = self.id.take().unwrap();
        let removed = Box::new(move || sender.send(()).unwrap());
        self.handle.command(|commands| commands.remove(id, removed));
        gone.recv_timeout(TEST_TIMEOUT).expect("the queue is removed");
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.handle.stop();
        self.thread.take().unwrap().join().unwrap();
    }
}
