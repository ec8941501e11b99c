//! [`Link`]: the thread that keeps a server connected. It negotiates, hands the rings of each connection to the engine
//! ([`super::engine`]), tells it when the server has gone, and the disk's user when its size has changed.

use std::error::Error;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use ringblk::GuestRam;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, epoll, eventfd, poll};
use vhost::VhostUserMemoryRegionInfo;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::connect::{Connection, FrontError, Shape};
use super::kick::{Kick, Threads};
use super::notices::{Notice, Notices};
use super::shared::SharedRings;

/// Queues that a server is asked for.
pub const QUEUES: u16 = 4;
/// Between attempts to connect.
const PAUSE: Duration = Duration::from_millis(100);
/// How often it is said that a server is not there: attempts.
const REMINDER: u32 = 100;
/// A connection that lasts less is followed by a pause.
const STEADY: Duration = Duration::from_secs(1);
/// Between looks at the channel for notices that has had one: what a server says in between is heeded once, together.
const NOTICE_PAUSE: Duration = Duration::from_millis(100);
/// Most notices of one look.
const NOTICES: usize = 1000;
/// Between looks at what a server that was sent away goes on saying.
const AWAY_PAUSE: Duration = Duration::from_millis(10);
/// Lines about a server, at most so many in a time.
const LINES: u32 = 20;
const LINES_TIME: Duration = Duration::from_secs(10);

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

    fn resize(&self, path: &Path, size: u64, talk: &Talk) {
        let before = self.size.swap(size, Ordering::Relaxed);
        if before == size {
            return;
        }
        if talk.may() {
            tracing::info!(path = %path.display(), before, size, "the served disk has another size");
        }
        if let Some(tell) = &*locked(&self.resized) {
            tell();
        }
    }
}

/// How much is said of a server in the log: it may come, go and do wrong as often as it likes.
#[derive(Default)]
pub struct Talk(Mutex<Option<Lines>>);

struct Lines {
    begun: Instant,
    said: u32,
}

impl Talk {
    /// Whether there may be one more line.
    pub fn may(&self) -> bool {
        self.may_at(Instant::now())
    }

    fn may_at(&self, now: Instant) -> bool {
        let mut lines = locked(&self.0);
        let fresh = Lines { begun: now, said: 0 };
        let lines = match &mut *lines {
            Some(lines) if now.saturating_duration_since(lines.begun) < LINES_TIME => lines,
            other => other.insert(fresh),
        };
        lines.said = lines.said.saturating_add(1);
        if lines.said == LINES {
            tracing::warn!("too much is to be said of a disk's server: no more for {LINES_TIME:?}");
        }
        lines.said < LINES
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
        kicks: Vec<Kick>,
    },
    /// It has broken the rules, and is to go: nothing more is asked of it, and nothing that it answers counts.
    Faulty,
    /// It has gone; nobody touches what is in flight.
    Down,
}

/// Shared by the thread and the engine.
pub struct Shared {
    /// Readable when the server has said that requests are done, or the thread has news: an epoll instance, so that each
    /// connection can have an event of its own. The server has that one too, so nobody here reads or writes it: it could be
    /// made to wait. It is polled, and goes with its connection, in whatever state the server has left it.
    pub event: Arc<File>,
    /// Signalled by the thread: nobody else has it.
    told: File,
    /// What is said of the server.
    pub talk: Talk,
    /// The server of now has been told to go.
    sent_away: AtomicBool,
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
    fn new() -> io::Result<Arc<Self>> {
        let event = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map(File::from);
        let (all, told) = (epoll::create(epoll::CreateFlags::CLOEXEC)?, event()?);
        watch(&all, &told)?;
        Ok(Arc::new(Self {
            event: Arc::new(all.into()),
            told,
            talk: Talk::default(),
            sent_away: AtomicBool::new(false),
            news: Mutex::default(),
            has_news: AtomicBool::new(false),
            ending: AtomicBool::new(false),
            leaving: AtomicU64::new(0),
            wake: event()?,
            stream: Mutex::default(),
        }))
    }

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
        let _ = (&self.told).write(&1_u64.to_ne_bytes());
    }

    /// The server wrote nonsense: it is told to go. What it works at is known to be free when it has closed the
    /// connection, or died.
    pub fn hang_up(&self) {
        self.sent_away.store(true, Ordering::Release);
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

    fn is_sent_away(&self) -> bool {
        self.sent_away.load(Ordering::Acquire)
    }

    fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Acquire)
    }

    fn pause(&self, time: Duration) {
        self.sleep([], Some(time));
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
    /// Whether servers are kicked by io_urings.
    pub io_uring: bool,
    /// Those that kick servers otherwise.
    pub threads: Threads,
}

/// Readable `event` makes `epoll` readable.
fn watch(epoll: impl AsFd, event: impl AsFd) -> io::Result<()> {
    let flags = epoll::EventFlags::IN;
    Ok(epoll::add(epoll, event, epoll::EventData::new_u64(0), flags)?)
}

/// What a server signals, as long as its connection lasts.
struct Call<'a> {
    shared: &'a Shared,
    event: EventFd,
}

impl<'a> Call<'a> {
    fn new(shared: &'a Shared) -> io::Result<Self> {
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let call = Self { shared, event };
        watch(&call.shared.event, call.fd())?;
        Ok(call)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: open as long as `self`.
        unsafe { BorrowedFd::borrow_raw(self.event.as_raw_fd()) }
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        // The server may keep it open.
        let _ = epoll::delete(&self.shared.event, self.fd());
    }
}

/// A server that works at rings of ours.
struct Session<'a> {
    connection: Connection,
    notices: Option<Notices>,
    _call: Call<'a>,
}

impl Link {
    /// Starts the thread.
    ///
    /// # Errors
    /// No threads or descriptors are left.
    pub fn start(self) -> io::Result<Arc<Shared>> {
        let shared = Shared::new()?;
        let result = shared.clone();
        std::thread::Builder::new()
            .name("vhost-user".into())
            .spawn(move || {
                ringblk::affinity::run_anywhere();
                self.run(&shared);
            })?;
        Ok(result)
    }

    fn run(&self, shared: &Shared) {
        let mut attempts = 0_u32;
        let mut said = String::new();
        while !shared.is_ending() {
            match self.connect(shared) {
                Ok(session) => {
                    (attempts, said) = (0, String::new());
                    let begun = Instant::now();
                    self.attend(shared, session);
                    *locked(&shared.stream) = None;
                    shared.tell(News::Down);
                    if begun.elapsed() < STEADY {
                        shared.pause(PAUSE);
                    }
                }
                Err(error) => {
                    let error = error.to_string();
                    if (attempts.is_multiple_of(REMINDER) || error != said) && shared.talk.may() {
                        let path = self.path.display();
                        tracing::warn!(%path, %error, "the disk's server cannot be used: its requests wait");
                    }
                    said = error;
                    attempts = attempts.wrapping_add(1);
                    shared.pause(PAUSE);
                }
            }
        }
    }

    /// Until the server goes, or the engine does.
    fn attend(&self, shared: &Shared, session: Session<'_>) {
        let Session {
            mut connection,
            mut notices,
            _call,
        } = session;
        let path = self.path.display();
        let mut heed_from = Instant::now();
        let mut said = vec![0; 1 << 16];
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
            let mut time = limit.left(shared.leaving.load(Ordering::Acquire));
            if time == Some(Duration::ZERO) {
                tracing::error!(
                    %path,
                    patience = ?self.patience,
                    "the disk's server does not let go of requests: cut off; what it still writes goes into the guest's memory"
                );
                let _ = connection.stream().shutdown(Shutdown::Both);
                return;
            }
            if shared.is_sent_away() {
                notices = None;
            }
            let calm = heed_from.saturating_duration_since(Instant::now());
            if notices.is_some() && !calm.is_zero() {
                time = Some(time.map_or(calm, |time| time.min(calm)));
            }
            let fds = [
                Some(connection.stream().as_fd()),
                notices.as_ref().filter(|_| calm.is_zero()).map(Notices::fd),
            ];
            let [stream, noticed] = shared.sleep(fds, time);
            if noticed && let Some(channel) = &mut notices {
                heed_from = Instant::now() + NOTICE_PAUSE;
                match self.heed(shared, &mut connection, channel) {
                    Ok(true) => {}
                    Ok(false) => notices = None,
                    Err(error) => self.send_away(shared, &*error),
                }
            }
            if !stream {
                continue;
            }
            match connection.stream().read(&mut said) {
                // A server that says something unasked.
                Ok(1..) => {
                    if !shared.is_sent_away() {
                        self.send_away(shared, "it answers what was not asked");
                    }
                    shared.pause(AWAY_PAUSE);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => {
                    if !shared.is_ending() && shared.talk.may() {
                        tracing::warn!(%path, "the disk's server has gone: its requests wait");
                    }
                    return;
                }
            }
        }
    }

    /// Takes what has come on the channel for notices, and asks once what has changed. `false`: the channel is closed.
    fn heed(
        &self,
        shared: &Shared,
        connection: &mut Connection,
        channel: &mut Notices,
    ) -> Result<bool, Box<dyn Error>> {
        let (mut changed, mut open) = (false, true);
        for _ in 0..NOTICES {
            match channel.take()? {
                Notice::None => break,
                Notice::Changed => changed = true,
                Notice::Closed => {
                    open = false;
                    break;
                }
            }
        }
        if changed {
            let size = connection.reread()?.size;
            self.known.resize(&self.path, size, &shared.talk);
        }
        Ok(open)
    }

    fn send_away<E: fmt::Display + ?Sized>(&self, shared: &Shared, error: &E) {
        if shared.talk.may() {
            tracing::error!(path = %self.path.display(), %error, "the disk's server is sent away");
        }
        shared.hang_up();
        shared.tell(News::Faulty);
    }

    /// Connects, and has the server begin.
    fn connect<'a>(&self, shared: &'a Shared) -> Result<Session<'a>, FrontError> {
        let system = |what| move |source: io::Error| FrontError::System { what, source };
        let stream = (self.reach)(&self.path).map_err(system("cannot connect"))?;
        let mut connection = Connection::negotiate_within(stream, QUEUES, self.patience)?;
        let shape = *connection.shape();
        self.known.check(&shape)?;
        let rings = SharedRings::new(shape.queues, connection.event_idx())
            .map_err(system("cannot make the rings"))?;
        let kicks = (0..shape.queues).map(|_| Kick::new(self.io_uring, &self.threads));
        let kicks = kicks.collect::<Result<Vec<_>, _>>();
        let kicks = kicks.map_err(system("cannot make an event"))?;
        let theirs = kicks.iter().map(Kick::for_server).collect::<Result<Vec<_>, _>>();
        let theirs = theirs.map_err(system("cannot copy a descriptor"))?;
        let call = Call::new(shared).map_err(system("cannot make an event"))?;
        let guest = self.memory()?;
        let notices = connection.notices()?;
        connection.start(&guest, &rings, &theirs, &call.event)?;
        let stream = connection.stream().try_clone();
        let stream = stream.map_err(system("cannot copy a descriptor"))?;
        shared.sent_away.store(false, Ordering::Release);
        *locked(&shared.stream) = Some(stream);
        if shared.talk.may() {
            tracing::info!(path = %self.path.display(), queues = shape.queues, "connected to the disk's server");
        }
        self.known.resize(&self.path, shape.size, &shared.talk);
        shared.tell(News::Up { shape, rings, kicks });
        Ok(Session {
            connection,
            notices,
            _call: call,
        })
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

#[cfg(test)]
impl Shared {
    /// Without a thread.
    pub fn alone() -> Arc<Self> {
        Self::new().unwrap()
    }

    /// As the thread does.
    pub fn hear(&self, news: News) {
        self.tell(news);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn not_too_much_is_said_of_a_server() {
        let (talk, begun) = (Talk::default(), Instant::now());
        let said = |from: u64| {
            let times = (0..1000).map(|ms| begun + Duration::from_millis(from + ms));
            times.filter(|&now| talk.may_at(now)).count()
        };
        assert_eq!(said(0), 19);
        assert_eq!(said(5_000), 0);
        assert_eq!(said(10_000), 19);
    }

    #[test]
    fn a_call_counts_as_long_as_its_connection() {
        let shared = Shared::alone();
        let readable = || {
            let mut polled = [PollFd::new(&*shared.event, PollFlags::IN)];
            poll(&mut polled, Some(&Timespec::default())).unwrap() == 1
        };
        assert!(!readable());
        let call = Call::new(&shared).unwrap();
        let server = call.event.try_clone().unwrap();
        server.write(u64::MAX - 1).unwrap();
        assert!(readable());
        drop(call);
        assert!(!readable());
        shared.tell(News::Down);
        assert!(readable());
    }
}
