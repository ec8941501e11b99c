//! [`FrontEngine`]: ringblk's operations as requests in a server's rings; [`ServedDisk`] makes one.
//!
//! An operation is kept until the server has answered it. When the server goes, all that it had is asked again of the
//! next one, in the order in which it came; nobody hears of it but by waiting.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ringblk::GuestRam;
use ringblk::engine::{Engine, IoDone, IoKind, IoOp};
use ringblk::memory::IoVec;
use ringblk::remote::{Blocking, Connector, Remembered, Remote, RemoteEngine};

use super::blocking::BlockingFront;
use super::connect::{Connection, PATIENCE, Shape};
use super::kick::{Kick, Threads};
use super::link::{Known, Link, News, QUEUES, Reach, Shared};
use super::ring::{Done, DriverRing, Request};
use super::shared::SharedRings;

/// Most bytes of one request; more follow it.
const TRANSFER_MAX: u64 = 4 << 20;
/// Status of a request that went well (virtio 1.2, 5.2.6).
const OK: u8 = 0;
/// Of one that the server does not know.
const UNSUPP: u8 = 2;
const SECTOR: u64 = ringblk::virtio::SECTOR_SIZE;

/// Finds disks by connecting to their servers.
pub struct Driver {
    reach: Reach,
    patience: Duration,
    io_uring: bool,
}

impl Driver {
    /// Connects by way of `reach`.
    #[must_use]
    pub fn new(reach: Reach) -> Self {
        Self {
            reach,
            patience: PATIENCE,
            io_uring: true,
        }
    }

    /// Gives servers so much time for an answer, and for letting go of requests that nobody wants any more.
    #[must_use]
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Whether io_uring may be used, where the system has it, to kick servers.
    #[must_use]
    pub fn with_io_uring(self, io_uring: bool) -> Self {
        Self { io_uring, ..self }
    }
}

impl Connector for Driver {
    fn connect(&self, path: &Path) -> Result<Arc<dyn Remote>, String> {
        let stream = (self.reach)(path).map_err(|error| format!("cannot connect: {error}"))?;
        let connection = Connection::negotiate_within(stream, QUEUES, self.patience);
        let connection = connection.map_err(|error| error.to_string())?;
        let shape = connection.shape();
        Ok(self.disk(
            path,
            shape.zeroes > 0,
            Remembered {
                size: shape.size,
                block_size: shape.block_size,
                readonly: shape.readonly,
            },
        ))
    }

    fn expect(&self, path: &Path, known: Remembered) -> Arc<dyn Remote> {
        // A server that cannot write zeroes says so to each request.
        self.disk(path, true, known)
    }
}

impl Driver {
    fn disk(&self, path: &Path, zeroes: bool, known: Remembered) -> Arc<ServedDisk> {
        let known = Arc::new(Known {
            size: AtomicU64::new(known.size),
            block_size: known.block_size,
            readonly: known.readonly,
            resized: Mutex::default(),
        });
        Arc::new(ServedDisk {
            path: path.into(),
            reach: self.reach.clone(),
            zeroes,
            patience: self.patience,
            io_uring: self.io_uring,
            threads: Threads::default(),
            blocking: BlockingFront::new(path.into(), self.reach.clone(), self.patience, known.clone()),
            known,
        })
    }
}

/// A disk that a server has.
struct ServedDisk {
    path: std::path::PathBuf,
    reach: Reach,
    zeroes: bool,
    patience: Duration,
    io_uring: bool,
    threads: Threads,
    /// Used while it moves.
    blocking: BlockingFront,
    known: Arc<Known>,
}

impl fmt::Debug for ServedDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServedDisk")
            .field("path", &self.path)
            .field("known", &self.known)
            .finish_non_exhaustive()
    }
}

impl Remote for ServedDisk {
    fn size(&self) -> u64 {
        self.known.size.load(Ordering::Relaxed)
    }

    fn block_size(&self) -> u32 {
        self.known.block_size
    }

    fn is_readonly(&self) -> bool {
        self.known.readonly
    }

    fn has_zeroes(&self) -> bool {
        self.zeroes
    }

    fn on_resize(&self, tell: Box<dyn Fn() + Send + Sync>) {
        let mut resized = self
            .known
            .resized
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        *resized = Some(tell);
    }

    fn perform(&self, what: Blocking<'_>, offset: u64) -> io::Result<()> {
        self.blocking.perform(what, offset)
    }

    fn losses(&self) -> u64 {
        self.blocking.losses()
    }

    fn start(&self, ram: &Arc<GuestRam>) -> io::Result<Box<dyn RemoteEngine>> {
        self.blocking.disconnect();
        let link = Link {
            path: self.path.clone(),
            reach: self.reach.clone(),
            known: self.known.clone(),
            ram: ram.clone(),
            patience: self.patience,
            io_uring: self.io_uring,
            threads: self.threads.clone(),
        };
        Ok(Box::new(FrontEngine::new(link.start()?, ram.clone())))
    }
}

/// An operation that is not done.
struct Operation {
    op: IoOp,
    /// Where the next request of it begins; bytes that its requests in flight are about.
    offset: u64,
    asked: u64,
    /// It is written, and only to be made durable.
    written: bool,
}

struct Up {
    shape: Shape,
    rings: SharedRings,
    kicks: Vec<Kick>,
    /// The server has broken the rules; it is being waited for.
    faulty: bool,
}

/// The engine of one disk in one guest's memory.
struct FrontEngine {
    shared: Arc<Shared>,
    ram: Arc<GuestRam>,
    up: Option<Up>,
    /// By the order in which they came.
    operations: BTreeMap<u64, Operation>,
    /// Those that are not in a ring.
    waiting: VecDeque<u64>,
    next: u64,
    done: Vec<IoDone>,
    /// Storage for one request's buffers.
    parts: Vec<(u64, u32)>,
    /// Whose operations somebody waits for: tags without their low 16 bits.
    leaving: Vec<u64>,
    /// How often such a wait has begun.
    waits: u64,
}

/// Bits of a tag that are its queue's own.
const OF_QUEUE: u64 = 0xffff;

impl FrontEngine {
    fn new(shared: Arc<Shared>, ram: Arc<GuestRam>) -> Self {
        Self {
            shared,
            ram,
            up: None,
            operations: BTreeMap::new(),
            waiting: VecDeque::new(),
            next: 0,
            done: Vec::new(),
            parts: Vec::new(),
            leaving: Vec::new(),
            waits: 0,
        }
    }

    /// Puts into the rings what waits, as long as there is room.
    fn fill(&mut self) {
        while let Some(&key) = self.waiting.front() {
            let Some(up) = self.up.as_mut().filter(|up| !up.faulty) else {
                return;
            };
            let Some(operation) = self.operations.get_mut(&key) else {
                self.waiting.pop_front();
                continue;
            };
            let queue = (operation.op.tag >> 16) as usize % up.rings.rings.len().max(1);
            let Some(ring) = up.rings.rings.get_mut(queue) else {
                return;
            };
            if ring.is_full() {
                return;
            }
            self.parts.clear();
            match request(operation, &up.shape, &self.ram, &mut self.parts) {
                Ok(request) => {
                    ring.push(key, request, &self.parts);
                }
                Err(result) => self.finish(key, result),
            }
            self.waiting.pop_front();
        }
    }

    fn kick(&mut self) {
        if let Some(up) = self.up.as_mut().filter(|up| !up.faulty) {
            for (ring, kick) in up.rings.rings.iter_mut().zip(&mut up.kicks) {
                if ring.publish() {
                    kick.kick();
                }
            }
        }
    }

    fn finish(&mut self, key: u64, result: i32) {
        if let Some(operation) = self.operations.remove(&key) {
            let tag = operation.op.tag;
            self.done.push(IoDone { tag, result });
        }
    }

    /// The server has answered a request.
    fn answered(&mut self, done: Done) {
        let key = done.token;
        let Some(operation) = self.operations.get_mut(&key) else {
            return;
        };
        match done.status {
            OK => {}
            UNSUPP => return self.finish(key, -libc::EOPNOTSUPP),
            _ => return self.finish(key, -libc::EIO),
        }
        let kind = operation.op.kind;
        if !kind.is_transfer() && kind != IoKind::Sync {
            operation.offset += operation.asked;
            if operation.offset < operation.op.offset.saturating_add(operation.op.len) {
                return self.waiting.push_back(key);
            }
            return self.finish(key, 0);
        }
        let result = i32::try_from(operation.asked).unwrap_or(i32::MAX);
        let caches = self.up.as_ref().is_some_and(|up| up.shape.flush);
        if kind == IoKind::WriteDurable && caches && !operation.written {
            operation.written = true;
            return self.waiting.push_back(key);
        }
        self.finish(key, result);
    }

    /// Takes what the servers have said and done.
    fn look(&mut self) {
        for news in self.shared.take_news() {
            match news {
                News::Up { shape, rings, kicks } => {
                    self.up = Some(Up {
                        shape,
                        rings,
                        kicks,
                        faulty: false,
                    });
                }
                News::Faulty => {
                    self.take_answers();
                    if let Some(up) = &mut self.up {
                        up.faulty = true;
                    }
                }
                News::Down => {
                    self.take_answers();
                    self.up = None;
                    // Somebody waits for these to be let go of, which they are now: the next server may already be there,
                    // and does not get them.
                    let leaving = &self.leaving;
                    self.operations
                        .retain(|_, operation| !leaving.contains(&(operation.op.tag & !OF_QUEUE)));
                    // All of it again, also what waited for a flush: the next server may not have it.
                    for operation in self.operations.values_mut() {
                        operation.written = false;
                    }
                    self.waiting = self.operations.keys().copied().collect();
                }
            }
        }
        self.take_answers();
        self.fill();
        self.kick();
        if !self.leaving.is_empty() {
            self.forget_who_left();
        }
    }

    /// Nobody waits for the server on account of queues that have nothing left.
    fn forget_who_left(&mut self) {
        let operations = &self.operations;
        let has = |tag: u64| operations.values().any(|o| o.op.tag & !OF_QUEUE == tag);
        self.leaving.retain(|&tag| has(tag));
        if self.leaving.is_empty() {
            self.shared.leave(0);
        }
    }

    fn take_answers(&mut self) {
        let mut queue = 0;
        while let Some(up) = self.up.as_mut().filter(|up| !up.faulty) {
            let Some(ring) = up.rings.rings.get_mut(queue) else {
                return;
            };
            match ring.pop() {
                Ok(Some(done)) => self.answered(done),
                Ok(None) => queue += 1,
                Err(nonsense) => {
                    if self.shared.talk.may() {
                        tracing::error!(%nonsense, "the disk's server is sent away");
                    }
                    up.faulty = true;
                    self.shared.hang_up();
                }
            }
        }
    }
}

/// The next request of an operation, with its buffers; or the operation's result, if there is none.
fn request(
    operation: &mut Operation,
    shape: &Shape,
    ram: &GuestRam,
    parts: &mut Vec<(u64, u32)>,
) -> Result<Request, i32> {
    let op = &operation.op;
    let left = op.offset.saturating_add(op.len).saturating_sub(operation.offset);
    let piece = |most: u64| left.min(most - most % SECTOR);
    match op.kind {
        IoKind::Sync if shape.flush => Ok(Request::Flush),
        // It has no cache.
        IoKind::Sync => Err(0),
        IoKind::WriteDurable if operation.written => Ok(Request::Flush),
        IoKind::Discard if shape.discard < SECTOR => Err(-libc::EOPNOTSUPP),
        IoKind::Discard => {
            operation.asked = piece(shape.discard);
            Ok(Request::Discard {
                offset: operation.offset,
                len: operation.asked,
            })
        }
        IoKind::WriteZeroes { .. } if shape.zeroes < SECTOR => Err(-libc::EOPNOTSUPP),
        IoKind::WriteZeroes { unmap } => {
            operation.asked = piece(shape.zeroes);
            Ok(Request::WriteZeroes {
                offset: operation.offset,
                len: operation.asked,
                unmap,
            })
        }
        IoKind::Read | IoKind::Write | IoKind::WriteDurable => {
            // SAFETY: it is not done, so its list is valid by the contract of `Engine::push`.
            let list = unsafe { op.parts() };
            operation.asked = gather(list, shape, ram, parts)?;
            let offset = op.offset;
            Ok(match op.kind {
                IoKind::Read => Request::Read { offset },
                _ => Request::Write { offset },
            })
        }
    }
}

/// As much of a list as one request takes, in whole sectors, at guest-physical addresses. Gives the bytes.
fn gather(list: &[IoVec], shape: &Shape, ram: &GuestRam, parts: &mut Vec<(u64, u32)>) -> Result<u64, i32> {
    let block = u64::from(shape.block_size);
    let mut total = 0;
    for part in list {
        // What the status or the header was taken out of may be left without a byte: servers refuse such.
        if part.is_empty() {
            continue;
        }
        let room = TRANSFER_MAX - total;
        if room == 0 || parts.len() == shape.segments {
            break;
        }
        let len = (part.len() as u64).min(room);
        let addr = ram.guest_address(part).ok_or(-libc::EFAULT)?;
        // At most `TRANSFER_MAX`.
        parts.push((addr, len as u32));
        total += len;
    }
    let mut excess = total % block;
    total -= excess;
    while excess > 0 {
        let Some((_, len)) = parts.last_mut() else {
            break;
        };
        let cut = excess.min(u64::from(*len));
        *len -= cut as u32;
        excess -= cut;
        if *len == 0 {
            parts.pop();
        }
    }
    if total == 0 {
        return Err(-libc::EIO);
    }
    Ok(total)
}

impl Engine for FrontEngine {
    unsafe fn push(&mut self, op: IoOp) {
        let key = self.next;
        self.next += 1;
        let operation = Operation {
            offset: op.offset,
            op,
            asked: 0,
            written: false,
        };
        self.operations.insert(key, operation);
        self.waiting.push_back(key);
    }

    fn submit(&mut self) {
        self.look();
    }

    fn reap(&mut self, done: &mut Vec<IoDone>) {
        self.look();
        done.append(&mut self.done);
    }
}

impl RemoteEngine for FrontEngine {
    fn event(&self) -> Arc<File> {
        self.shared.event.clone()
    }

    fn has_done(&self) -> bool {
        let up = self.up.as_ref().filter(|up| !up.faulty);
        let answered = up.is_some_and(|up| up.rings.rings.iter().any(DriverRing::has_done));
        answered || self.shared.has_news() || !self.done.is_empty()
    }

    fn arm(&mut self) -> bool {
        let rings = self
            .up
            .iter_mut()
            .filter(|up| !up.faulty)
            .flat_map(|up| &mut up.rings.rings);
        let more = rings.fold(false, |more, ring| ring.arm() | more);
        more || self.shared.has_news() || !self.done.is_empty()
    }

    fn abandon(&mut self, tag_base: u64) -> bool {
        self.look();
        let of = |tag: u64| tag & !OF_QUEUE == tag_base;
        if self.up.is_none() {
            self.operations.retain(|_, operation| !of(operation.op.tag));
            self.forget_who_left();
        }
        if self.done.iter().any(|done| of(done.tag)) {
            // Reaped before anybody sleeps.
            return false;
        }
        if !self.operations.values().any(|operation| of(operation.op.tag)) {
            return true;
        }
        if !self.leaving.contains(&tag_base) {
            self.leaving.push(tag_base);
            if let [_] = *self.leaving {
                self.waits += 1;
                self.shared.leave(self.waits);
            }
        }
        false
    }
}

impl Drop for FrontEngine {
    fn drop(&mut self) {
        self.shared.end();
    }
}

#[cfg(test)]
mod tests {
    use ringblk::{Disk, DiskConfig};
    use vm_memory::{GuestAddress, GuestMemoryMmap};

    use super::*;

    fn up() -> News {
        News::Up {
            shape: Shape {
                size: 1 << 20,
                block_size: 512,
                readonly: false,
                flush: true,
                discard: 0,
                zeroes: 0,
                segments: 1,
                queues: 1,
                features: 0,
            },
            rings: SharedRings::new(1, false).unwrap(),
            kicks: Vec::new(),
        }
    }

    /// The next server may be there before anybody has looked.
    #[test]
    fn who_leaves_is_let_go_when_the_server_goes() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4096)]).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(4096).unwrap();
        // An operation names an image, of which the engine makes nothing.
        let disk = Disk::open(&DiskConfig {
            path: file.path().into(),
            ..DiskConfig::default()
        })
        .unwrap();
        let shared = Shared::alone();
        let mut engine = FrontEngine::new(shared.clone(), GuestRam::new(memory).unwrap());
        shared.hear(up());
        let (leaving, staying) = (1 << 16, 2 << 16);
        for tag in [leaving, staying] {
            let op = IoOp {
                tag,
                image: disk.image(),
                kind: IoKind::Sync,
                iov: std::ptr::null(),
                count: 0,
                offset: 0,
                len: 0,
                immediate: false,
            };
            // SAFETY: it has no buffers.
            unsafe { engine.push(op) };
        }
        assert!(!engine.abandon(leaving));
        shared.hear(News::Down);
        shared.hear(up());
        assert!(engine.abandon(leaving), "nobody works at it");
        assert!(engine.leaving.is_empty());
        let rings = |engine: &FrontEngine| engine.up.as_ref().unwrap().rings.rings[0].outstanding();
        assert_eq!(rings(&engine), 1, "the other queue's is asked again");
        // Of one that has broken the rules nothing more is asked.
        shared.hear(News::Faulty);
        assert!(!engine.abandon(staying));
        let again = engine.operations.values().next().unwrap().op;
        // SAFETY: as above.
        unsafe { engine.push(again) };
        engine.submit();
        assert_eq!(rings(&engine), 1);
        assert!(!engine.arm());
    }
}
