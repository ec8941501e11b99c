//! [`Link`]: the thread that has the connection to a server, so that no reactor waits for an answer.
//!
//! It starts and stops queues in the order in which it is asked to. A server that closes the connection, or
//! breaks the protocol, is connected to again, and gets the queues that it should serve: each begins at its
//! used index, so that what the last server had not completed is repeated, and nothing that the driver has
//! back is touched.

use std::collections::BTreeMap;
use std::io;
use std::mem;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use ringvirtio::memory::Extent;
use ringvirtio::{Callback, GuestRam, RingAddresses};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use vm_memory::Address;

use super::descriptors::{Descriptors, FrontOptions};
use super::message::Region;
use super::session::{Session, Vring, inode};
use super::state::{Server, State};
use crate::front::kick::Kick;
use crate::front::log_limit::LogLimit;

/// Time between two attempts to connect.
const RETRY: Duration = Duration::from_millis(500);
/// Bits of [`State`] for queues.
const QUEUES_MAX: u16 = 64;

/// A queue that the server is to serve.
pub struct Wanted {
    /// Its number.
    pub number: u16,
    /// Size and areas.
    pub ring: RingAddresses,
    /// Negotiated by the driver.
    pub features: u64,
    /// Changes with every reset.
    pub epoch: u64,
    /// The guest's memory.
    pub ram: Arc<GuestRam>,
    /// Notifies the server.
    pub kick: Kick,
    /// Notifies the daemon.
    pub call: OwnedFd,
}

enum Command {
    Start(Box<Wanted>),
    Release(Option<u16>, Callback),
    Enable(u16),
}

/// What others have of the thread.
pub struct Link {
    commands: Mutex<Vec<Command>>,
    wake: OwnedFd,
    ending: AtomicBool,
}

impl Link {
    /// Starts the thread. `session`: the connection, with its socket's number, if there is one.
    ///
    /// # Errors
    /// No threads or descriptors are left.
    pub fn start(
        descriptors: Arc<dyn Descriptors>,
        state: State,
        options: FrontOptions,
        session: Option<(Session, u64)>,
        server: Server,
    ) -> io::Result<Arc<Self>> {
        let link = Arc::new(Self {
            commands: Mutex::default(),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            ending: AtomicBool::new(false),
        });
        let runner = Runner {
            link: link.clone(),
            descriptors,
            state,
            options,
            session,
            server,
            wanted: BTreeMap::new(),
            enabled: u16::MAX,
            log: LogLimit::default(),
            next: Instant::now(),
        };
        std::thread::Builder::new()
            .name("vhost-user".into())
            .spawn(move || {
                ringvirtio::affinity::run_anywhere();
                runner.run();
            })?;
        Ok(link)
    }

    fn command(&self, command: Command) {
        self.commands.lock().push(command);
        self.wake();
    }

    fn wake(&self) {
        // A full counter is a wake-up already.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    /// Has the server serve a queue.
    pub fn serve(&self, wanted: Wanted) {
        self.command(Command::Start(Box::new(wanted)));
    }

    /// Takes a queue, or all, from the server; calls `then` afterwards.
    pub fn release(&self, queue: Option<u16>, then: Callback) {
        self.command(Command::Release(queue, then));
    }

    /// Lets the first `count` queues transfer data, and no other.
    pub fn enable(&self, count: u16) {
        self.command(Command::Enable(count));
    }

    /// Ends the thread; the server goes on.
    pub fn end(&self) {
        self.ending.store(true, Ordering::Release);
        self.wake();
    }
}

/// The thread.
struct Runner {
    link: Arc<Link>,
    descriptors: Arc<dyn Descriptors>,
    state: State,
    options: FrontOptions,
    session: Option<(Session, u64)>,
    /// What the driver was offered.
    server: Server,
    wanted: BTreeMap<u16, Wanted>,
    /// How many queues transfer data.
    enabled: u16,
    log: LogLimit,
    /// When to connect again.
    next: Instant,
}

impl Runner {
    fn run(mut self) {
        while !self.link.ending.load(Ordering::Acquire) {
            if self.session.is_none() && Instant::now() >= self.next {
                self.connect();
            }
            self.wait();
            let commands = mem::take(&mut *self.link.commands.lock());
            for command in commands {
                match command {
                    Command::Start(wanted) => self.start(*wanted),
                    Command::Release(queue, then) => {
                        self.release(queue);
                        then();
                    }
                    Command::Enable(count) => self.enable(count),
                }
            }
        }
    }

    /// Waits for commands, and for the end of the connection, or until it is time to connect.
    fn wait(&mut self) {
        let left = self.next.saturating_duration_since(Instant::now());
        let timeout = self.session.is_none().then(|| Timespec {
            tv_sec: 0,
            tv_nsec: left.min(RETRY).as_nanos() as _,
        });
        let wake = PollFd::new(&self.link.wake, PollFlags::IN);
        let hung_up = match &self.session {
            None => {
                let _ = poll(&mut [wake], timeout.as_ref());
                false
            }
            Some((session, _)) => {
                let mut fds = [wake, PollFd::new(session.stream(), PollFlags::IN)];
                let _ = poll(&mut fds, timeout.as_ref());
                let [_, stream] = fds;
                !stream.revents().is_empty()
            }
        };
        let _ = rustix::io::read(&self.link.wake, &mut [0; 8]);
        // The connection is another's from now on.
        if hung_up && !self.link.ending.load(Ordering::Acquire) {
            self.disconnect("it has closed the connection, or sends what was not asked for");
        }
    }

    fn disconnect(&mut self, why: impl std::fmt::Display) {
        if let Some((session, _)) = self.session.take() {
            if self.log.allows() {
                tracing::warn!(
                    device = self.options.name,
                    "the vhost-user server is disconnected: {why}"
                );
            }
            session.shut_down();
            self.state.unsettle();
            self.next = Instant::now() + RETRY;
        }
    }

    /// Sends messages: nothing is known of the connection until all are answered.
    fn converse(&mut self, messages: impl FnOnce(&mut Self, &Session) -> io::Result<()>) {
        let Some((session, socket)) = self.session.take() else {
            return;
        };
        self.state.unsettle();
        let result = messages(self, &session);
        self.session = Some((session, socket));
        match result {
            Ok(()) => self.state.settle(socket),
            Err(error) => self.disconnect(error),
        }
    }

    fn start(&mut self, wanted: Wanted) {
        let (number, epoch) = (wanted.number, wanted.epoch);
        if number >= QUEUES_MAX {
            return;
        }
        self.wanted.insert(number, wanted);
        if self.session.is_some() && self.state.is_running(number, epoch) {
            // An earlier daemon has started it.
            return;
        }
        self.converse(|this, session| {
            if this.state.running() != 0
                && !(0..QUEUES_MAX).any(|number| this.state.is_running(number, epoch))
            {
                this.stop(session, None)?;
            }
            this.send_queue(session, number)
        });
    }

    /// Starts a queue, and shares the memory before the first one.
    fn send_queue(&self, session: &Session, number: u16) -> io::Result<()> {
        let Some(wanted) = self.wanted.get(&number) else {
            return Ok(());
        };
        if self.state.running() == 0 {
            let (regions, files) = memory(&wanted.ram)?;
            session.set_up(wanted.features, &regions, &files)?;
        }
        let used = wanted.ram.slots::<AtomicU16>(wanted.ring.used, 2);
        let used = used.map_err(io::Error::other)?;
        let base = used
            .get(1)
            .map_or(0, |idx| u16::from_le(idx.load(Ordering::Acquire)));
        let kick = wanted.kick.for_server()?;
        let ring = &wanted.ring;
        let vring = Vring {
            number,
            size: ring.size,
            areas: [ring.desc, ring.avail, ring.used].map(|area| area.raw_value()),
            base,
            // SAFETY: open until the end of this function.
            kick: unsafe { BorrowedFd::borrow_raw(std::os::fd::AsRawFd::as_raw_fd(&kick)) },
            call: wanted.call.as_fd(),
        };
        session.start(&vring, number < self.enabled)?;
        self.state
            .set_running(self.state.running() | 1 << number, wanted.epoch);
        Ok(())
    }

    /// Stops queues that the server serves.
    fn stop(&self, session: &Session, queue: Option<u16>) -> io::Result<()> {
        let all = self.state.running();
        let mut left = all;
        for number in (0..QUEUES_MAX).filter(|number| queue.is_none_or(|queue| queue == *number)) {
            if all >> number & 1 != 0 {
                session.stop(number)?;
                left &= !(1 << number);
            }
        }
        self.state.keep_running(left);
        Ok(())
    }

    fn release(&mut self, queue: Option<u16>) {
        match queue {
            Some(number) => drop(self.wanted.remove(&number)),
            None => self.wanted.clear(),
        }
        if self.state.running() != 0 {
            self.converse(|this, session| this.stop(session, queue));
        }
    }

    fn enable(&mut self, count: u16) {
        let before = mem::replace(&mut self.enabled, count);
        let changed: Vec<u16> = (0..QUEUES_MAX)
            .filter(|number| (*number < before) != (*number < count))
            .filter(|number| self.wanted.contains_key(number))
            .collect();
        if !changed.is_empty() {
            self.converse(|_, session| {
                changed
                    .iter()
                    .try_for_each(|&number| session.enable(number, number < count))
            });
        }
    }

    /// Connects, and starts all queues.
    fn connect(&mut self) {
        self.next = Instant::now() + RETRY;
        match self.try_connect() {
            Ok(()) => tracing::info!(device = self.options.name, "connected to the vhost-user server"),
            Err(error) if self.log.allows() => {
                tracing::warn!(device = self.options.name, %error, "cannot use the vhost-user server: packets wait");
            }
            Err(_) => {}
        }
    }

    fn try_connect(&mut self) -> io::Result<()> {
        let stream = self.descriptors.socket()?;
        let socket = inode(&stream)?;
        let session = Session::negotiate(stream, self.options.timeout)?;
        let found = *session.server();
        let lacks = self.server.features & !found.features;
        if lacks != 0 || found.queues < self.server.queues {
            session.shut_down();
            return Err(io::Error::other(format!(
                "it has {} queues and lacks features {lacks:#x}, expected at least {} and what the last server had",
                found.queues, self.server.queues
            )));
        }
        self.state.unsettle();
        self.state.negotiated(&found);
        self.session = Some((session, socket));
        let numbers: Vec<u16> = self.wanted.keys().copied().collect();
        self.converse(|this, session| {
            numbers
                .iter()
                .try_for_each(|&number| this.send_queue(session, number))
        });
        // What is in the queues already was notified to the last server.
        for wanted in self.wanted.values_mut() {
            wanted.kick.kick();
        }
        match &self.session {
            Some(_) => Ok(()),
            None => Err(io::Error::other("it does not take the queues")),
        }
    }
}

/// Returns the memory table of the guest's RAM.
fn memory(ram: &GuestRam) -> io::Result<(Vec<Region>, Vec<BorrowedFd<'_>>)> {
    let one = |extent: &Extent| {
        let private = "the guest's memory has no descriptor, expected memory that can be shared";
        let (file, offset) = extent.file.ok_or_else(|| io::Error::other(private))?;
        let region = Region {
            start: extent.start,
            len: extent.len,
            offset,
        };
        // SAFETY: open as long as the RAM lives.
        Ok((region, unsafe { BorrowedFd::borrow_raw(file) }))
    };
    let all: io::Result<Vec<_>> = ram.extents().iter().map(one).collect();
    Ok(all?.into_iter().unzip())
}
