//! [`Link`]: the thread that keeps a server connected. It negotiates, hands the rings of each connection to the engine
//! ([`super::engine`]), tells it when the server has gone, and the disk's user when its size has changed.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, IntoRawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use ringblk::GuestRam;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use vhost::VhostUserMemoryRegionInfo;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::connect::{Connection, FrontError, Shape};
use super::notices::{Notice, Notices};
use super::shared::SharedRings;

/// Queues that a server is asked for.
pub const QUEUES: u16 = 4;
/// Between attempts to connect.
const PAUSE: Duration = Duration::from_millis(100);
/// How often it is said that a server is not there: attempts.
const REMINDER: u32 = 100;

/// How a server's socket is reached.
pub type Reach = Arc<dyn Fn(&Path) -> io::Result<UnixStream> + Send + Sync>;

/// Called when a disk has another size.
pub type Resized = Box<dyn Fn() + Send + Sync>;

/// A served disk as its guest knows it, whoever serves it at the moment.
pub struct Known {
    /// Bytes.
    pub size: AtomicU64,
    /// Bytes of a logical block.
    pub block_size: u32,
    /// Nothing can be written.
    pub readonly: bool,
    /// Whom to tell of another size.
    pub resized: Mutex<Option<Resized>>,
}

impl fmt::Debug for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Known")
            .field("size", &self.size)
            .field("block_size", &self.block_size)
            .field("readonly", &self.readonly)
            .finish_non_exhaustive()
    }
}

impl Known {
    /// Whether a server that has come (back) may go on with the disk. It may have grown; a smaller one is not the one that
    /// the guest has written to. Its blocks may be smaller: what a guest asks for is whole ones of those, too.
    pub fn check(&self, found: &Shape) -> Result<(), FrontError> {
        let size = self.size.load(Ordering::Relaxed);
        if found.size < size {
            return Err(FrontError::Changed {
                what: "the size",
                found: found.size,
                expected: size,
            });
        }
        if found.block_size > self.block_size {
            return Err(FrontError::Changed {
                what: "blk_size",
                found: found.block_size.into(),
                expected: self.block_size.into(),
            });
        }
        if found.readonly && !self.readonly {
            return Err(FrontError::Missing("writing, as the guest knows it"));
        }
        Ok(())
    }

    fn resize(&self, path: &Path, size: u64) {
        let before = self.size.swap(size, Ordering::Relaxed);
        if before == size {
            return;
        }
        tracing::info!(path = %path.display(), before, size, "the served disk has another size");
        if let Some(tell) = &*locked(&self.resized) {
            tell();
        }
    }
}

/// What the engine is told.
pub enum News {
    /// A server works at these rings from now on.
    Up {
        /// What it can do.
        shape: Shape,
        /// Its rings.
        rings: SharedRings,
        /// What each is kicked with.
        kicks: Vec<EventFd>,
    },
    /// It has gone; nobody touches what is in flight.
    Down,
}

/// Shared by the thread and the engine.
pub struct Shared {
    /// Signalled by the server when requests are done, and by the thread with news.
    pub event: Arc<File>,
    news: Mutex<Vec<News>>,
    has_news: AtomicBool,
    /// Told to end.
    ending: AtomicBool,
    /// Somebody waits for the server to let go of requests: how often that has begun; 0: nobody does.
    leaving: AtomicU64,
    /// Wakes the thread.
    wake: File,
    /// The connection of now.
    stream: Mutex<Option<UnixStream>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Shared {
    /// What is new since the last time.
    pub fn take_news(&self) -> Vec<News> {
        if !self.has_news.swap(false, Ordering::Acquire) {
            return Vec::new();
        }
        std::mem::take(&mut *locked(&self.news))
    }

    /// Whether there is something to be taken.
    pub fn has_news(&self) -> bool {
        self.has_news.load(Ordering::Acquire)
    }

    fn tell(&self, news: News) {
        locked(&self.news).push(news);
        self.has_news.store(true, Ordering::Release);
        let _ = (&*self.event).write(&1_u64.to_ne_bytes());
    }

    /// The server wrote nonsense: it is told to go. What it works at is known to be free when it has closed the
    /// connection, or died.
    pub fn hang_up(&self) {
        if let Some(stream) = &*locked(&self.stream) {
            let _ = stream.shutdown(Shutdown::Write);
        }
    }

    /// From now on somebody waits for the server: it has [`Link::patience`] to let go. `number` counts such waits from 1, 0
    /// ends one.
    pub fn leave(&self, number: u64) {
        self.leaving.store(number, Ordering::Release);
        if number != 0 {
            self.wake();
        }
    }

    /// The thread ends, after an orderly goodbye to the server.
    pub fn end(&self) {
        self.ending.store(true, Ordering::Release);
        self.wake();
    }

    fn wake(&self) {
        let _ = (&self.wake).write(&1_u64.to_ne_bytes());
    }

    fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Acquire)
    }

    /// Sleeps until woken, or one of `fds` is readable or closed: which are.
    fn sleep<const N: usize>(&self, fds: [Option<BorrowedFd<'_>>; N], time: Option<Duration>) -> [bool; N] {
        let mut polled = vec![PollFd::new(&self.wake, PollFlags::IN)];
        polled.extend(
            fds.iter()
                .flatten()
                .map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)),
        );
        let time = time.and_then(|time| Timespec::try_from(time).ok());
        let _ = poll(&mut polled, time.as_ref());
        let mut results = polled.iter().map(|fd| !fd.revents().is_empty());
        if results.next() == Some(true) {
            let _ = (&self.wake).read(&mut [0; 8]);
        }
        fds.map(|fd| fd.is_some() && results.next() == Some(true))
    }
}

/// Counts the time that somebody has been waiting for the server.
struct Limit {
    patience: Duration,
    wait: Option<(u64, Instant)>,
}

impl Limit {
    /// What is left of it, if somebody waits.
    fn left(&mut self, leaving: u64) -> Option<Duration> {
        self.wait = match self.wait {
            _ if leaving == 0 => None,
            Some((number, end)) if number == leaving => Some((number, end)),
            _ => Instant::now()
                .checked_add(self.patience)
                .map(|end| (leaving, end)),
        };
        self.wait
            .map(|(_, end)| end.saturating_duration_since(Instant::now()))
    }
}

/// What the thread works with.
pub struct Link {
    /// Where the server listens.
    pub path: PathBuf,
    /// How to get there.
    pub reach: Reach,
    /// The disk as the guest knows it.
    pub known: Arc<Known>,
    /// The memory that is shared.
    pub ram: Arc<GuestRam>,
    /// How long a server may take for an answer, and for letting go of requests that nobody wants any more.
    pub patience: Duration,
}

impl Link {
    /// Starts the thread.
    ///
    /// # Errors
    /// No threads or descriptors are left.
    pub fn start(self) -> io::Result<Arc<Shared>> {
        let event = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map(File::from);
        let shared = Arc::new(Shared {
            event: Arc::new(event()?),
            news: Mutex::default(),
            has_news: AtomicBool::new(false),
            ending: AtomicBool::new(false),
            leaving: AtomicU64::new(0),
            wake: event()?,
            stream: Mutex::default(),
        });
        let result = shared.clone();
        std::thread::Builder::new()
            .name("vhost-user".into())
            .spawn(move || self.run(&shared))?;
        Ok(result)
    }

    fn run(&self, shared: &Shared) {
        let mut attempts = 0_u32;
        let mut said = String::new();
        while !shared.is_ending() {
            match self.connect(shared) {
                Ok((mut connection, notices)) => {
                    (attempts, said) = (0, String::new());
                    self.attend(shared, &mut connection, notices);
                    *locked(&shared.stream) = None;
                    shared.tell(News::Down);
                }
                Err(error) => {
                    let error = error.to_string();
                    if attempts.is_multiple_of(REMINDER) || error != said {
                        let path = self.path.display();
                        tracing::warn!(%path, %error, "the disk's server cannot be used: its requests wait");
                    }
                    said = error;
                    attempts = attempts.wrapping_add(1);
                    shared.sleep([], Some(PAUSE));
                }
            }
        }
    }

    /// Until the server goes, or the engine does.
    fn attend(&self, shared: &Shared, connection: &mut Connection, mut notices: Option<Notices>) {
        let path = self.path.display();
        let mut limit = Limit {
            patience: self.patience,
            wait: None,
        };
        loop {
            if shared.is_ending() {
                // Nothing is in flight; it only lets go of the memory.
                if let Err(error) = connection.stop() {
                    tracing::debug!(%path, %error, "the disk's server did not say goodbye");
                }
                return;
            }
            let left = limit.left(shared.leaving.load(Ordering::Acquire));
            if left == Some(Duration::ZERO) {
                tracing::error!(
                    %path,
                    patience = ?self.patience,
                    "the disk's server does not let go of requests: cut off; what it still writes goes into the guest's memory"
                );
                let _ = connection.stream().shutdown(Shutdown::Both);
                return;
            }
            let fds = [
                Some(connection.stream().as_fd()),
                notices.as_ref().map(Notices::fd),
            ];
            let [stream, noticed] = shared.sleep(fds, left);
            if noticed && let Some(channel) = &mut notices {
                match channel.take() {
                    Ok(Notice::None) => {}
                    Ok(Notice::Closed) => notices = None,
                    Ok(Notice::Changed) => match connection.reread() {
                        Ok(shape) => self.known.resize(&self.path, shape.size),
                        Err(error) => {
                            tracing::error!(%path, %error, "the disk's server is sent away");
                            shared.hang_up();
                        }
                    },
                    Err(error) => {
                        tracing::error!(%path, %error, "the disk's server is sent away");
                        shared.hang_up();
                        notices = None;
                    }
                }
            }
            if !stream {
                continue;
            }
            let mut byte = [0];
            match connection.stream().read(&mut byte) {
                // A server that says something unasked.
                Ok(1..) => {
                    tracing::error!(%path, "the disk's server is sent away: it answers what was not asked");
                    shared.hang_up();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => {
                    if !shared.is_ending() {
                        tracing::warn!(%path, "the disk's server has gone: its requests wait");
                    }
                    return;
                }
            }
        }
    }

    /// Connects, and has the server begin.
    fn connect(&self, shared: &Shared) -> Result<(Connection, Option<Notices>), FrontError> {
        let system = |what| move |source: io::Error| FrontError::System { what, source };
        let stream = (self.reach)(&self.path).map_err(system("cannot connect"))?;
        let mut connection = Connection::negotiate_within(stream, QUEUES, self.patience)?;
        let shape = *connection.shape();
        self.known.check(&shape)?;
        let rings = SharedRings::new(shape.queues, connection.event_idx())
            .map_err(system("cannot make the rings"))?;
        // Neither side may be made to wait.
        let kicks = (0..shape.queues).map(|_| EventFd::new(EFD_NONBLOCK));
        let kicks = kicks.collect::<Result<Vec<_>, _>>();
        let kicks = kicks.map_err(system("cannot make an event"))?;
        let call = shared
            .event
            .try_clone()
            .map_err(system("cannot copy a descriptor"))?;
        // SAFETY: the descriptor is this copy's alone.
        let call = unsafe { EventFd::from_raw_fd(call.into_raw_fd()) };
        let guest = self.memory()?;
        let notices = connection.notices()?;
        connection.start(&guest, &rings, &kicks, &call)?;
        let stream = connection.stream().try_clone();
        *locked(&shared.stream) = Some(stream.map_err(system("cannot copy a descriptor"))?);
        tracing::info!(path = %self.path.display(), queues = shape.queues, "connected to the disk's server");
        self.known.resize(&self.path, shape.size);
        shared.tell(News::Up { shape, rings, kicks });
        Ok((connection, notices))
    }

    fn memory(&self) -> Result<Vec<VhostUserMemoryRegionInfo>, FrontError> {
        let mut table = Vec::new();
        for part in self.ram.files() {
            let Some(file) = part.file else {
                return Err(FrontError::Private);
            };
            table.push(VhostUserMemoryRegionInfo {
                guest_phys_addr: part.start,
                memory_size: part.len,
                userspace_addr: part.host,
                mmap_offset: part.offset,
                mmap_handle: file,
            });
        }
        Ok(table)
    }
}
