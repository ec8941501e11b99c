//! [`Link`]: the thread that keeps a server connected. It negotiates, passes the rings of each connection to
//! the engine ([`super::engine`]), and reports when the server is gone or its disk's size has changed.

use std::error::Error;
use std::fmt;
use std::io::{self, Read};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringvirtio::GuestRam;
use ringvirtio::memory::Extent;
use vhost::VhostUserMemoryRegionInfo;

use super::channel::{BackendChannel, BackendMessage};
use super::connect::{Connection, FrontError, system};
use super::endpoint::Endpoint;
use super::kick::{Kick, Threads};
use super::shared::SharedRings;
use super::state::{Call, LinkEvent, LinkState};

/// Most queues that a server is asked for.
pub const QUEUES: u16 = 4;
/// Time between attempts to connect.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// Number of failed attempts after which the failure is logged again.
const REMINDER: u32 = 100;
/// A connection that ends sooner is followed by a pause.
const STEADY: Duration = Duration::from_secs(1);
/// Time between two reads of the backend channel: messages that come in between are handled together.
const CHANNEL_INTERVAL: Duration = Duration::from_millis(100);
/// Most messages of one read.
const CHANNEL_MESSAGES: usize = 1000;
/// Time between two reads from a server that has been rejected and goes on sending.
const REJECTED_INTERVAL: Duration = Duration::from_millis(10);

/// Limits a wait for the server to release requests.
struct AbandonLimit {
    timeout: Duration,
    /// Number and end of the current wait.
    wait: Option<(u64, Instant)>,
}

impl AbandonLimit {
    /// Returns the time left of the wait with this number; `None` if it is 0.
    fn left(&mut self, number: u64) -> Option<Duration> {
        self.wait = match self.wait {
            _ if number == 0 => None,
            Some((current, end)) if current == number => Some((number, end)),
            _ => Instant::now().checked_add(self.timeout).map(|end| (number, end)),
        };
        self.wait
            .map(|(_, end)| end.saturating_duration_since(Instant::now()))
    }
}

/// What the thread works with.
pub struct Link {
    /// The disk and its server.
    pub endpoint: Arc<Endpoint>,
    /// The guest's memory, which the server shares.
    pub ram: Arc<GuestRam>,
    /// Counts the threads that kick servers without an io_uring.
    pub threads: Threads,
}

/// A server that uses our rings.
struct Session<'a> {
    connection: Connection,
    channel: Option<BackendChannel>,
    _call: Call<'a>,
}

impl Link {
    /// Starts the thread.
    ///
    /// # Errors
    /// No threads or descriptors are left.
    pub fn start(self) -> io::Result<Arc<LinkState>> {
        let state = LinkState::new()?;
        let result = state.clone();
        std::thread::Builder::new()
            .name("vhost-user".into())
            .spawn(move || {
                ringvirtio::affinity::run_anywhere();
                self.run(&state);
            })?;
        Ok(result)
    }

    fn run(&self, state: &LinkState) {
        let mut attempts = 0_u32;
        let mut logged = String::new();
        while !state.is_ending() {
            match self.connect(state) {
                Ok(session) => {
                    (attempts, logged) = (0, String::new());
                    let begin = Instant::now();
                    self.supervise(state, session);
                    state.clear_connection();
                    state.push(LinkEvent::Disconnected);
                    if begin.elapsed() < STEADY {
                        state.pause(RETRY_INTERVAL);
                    }
                }
                Err(error) => {
                    let error = error.to_string();
                    if (attempts.is_multiple_of(REMINDER) || error != logged) && state.log.allows() {
                        let path = self.endpoint.path.display();
                        tracing::warn!(%path, %error, "the disk's server cannot be used: its requests wait");
                    }
                    logged = error;
                    attempts = attempts.wrapping_add(1);
                    state.pause(RETRY_INTERVAL);
                }
            }
        }
    }

    /// Runs until the connection or the engine ends.
    fn supervise(&self, state: &LinkState, session: Session<'_>) {
        let Session {
            mut connection,
            mut channel,
            _call,
        } = session;
        let path = self.endpoint.path.display();
        let mut next_read = Instant::now();
        let mut discarded = vec![0; 1 << 16];
        let mut limit = AbandonLimit {
            timeout: self.endpoint.timeout,
            wait: None,
        };
        loop {
            if state.is_ending() {
                // Nothing is in flight; the server only has to release the memory.
                if let Err(error) = connection.stop() {
                    tracing::debug!(%path, %error, "the disk's server did not stop its queues");
                }
                return;
            }
            let mut time = limit.left(state.abandon_wait());
            if time == Some(Duration::ZERO) {
                tracing::error!(
                    %path,
                    timeout = ?self.endpoint.timeout,
                    "the disk's server does not release requests: disconnected; it may still write to the guest's memory"
                );
                let _ = connection.stream.shutdown(Shutdown::Both);
                return;
            }
            if state.is_rejected() {
                channel = None;
            }
            let pause = next_read.saturating_duration_since(Instant::now());
            if channel.is_some() && !pause.is_zero() {
                time = Some(time.map_or(pause, |time| time.min(pause)));
            }
            let fds = [
                Some(connection.stream.as_fd()),
                channel
                    .as_ref()
                    .filter(|_| pause.is_zero())
                    .map(BackendChannel::fd),
            ];
            let [from_stream, from_channel] = state.wait(fds, time);
            if from_channel && let Some(open) = &mut channel {
                next_read = Instant::now() + CHANNEL_INTERVAL;
                match self.handle_channel(state, &mut connection, open) {
                    Ok(true) => {}
                    Ok(false) => channel = None,
                    Err(error) => self.reject(state, &*error),
                }
            }
            if !from_stream {
                continue;
            }
            match (&connection.stream).read(&mut discarded) {
                // No reply is outstanding.
                Ok(1..) => {
                    if !state.is_rejected() {
                        self.reject(state, "it sends replies without a request");
                    }
                    state.pause(REJECTED_INTERVAL);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => {
                    if !state.is_ending() && state.log.allows() {
                        tracing::warn!(%path, "the disk's server has disconnected: its requests wait");
                    }
                    return;
                }
            }
        }
    }

    /// Reads the messages of the backend channel, and rereads the disk's size once if one says so. Returns
    /// `false` if the channel is closed.
    fn handle_channel(
        &self,
        state: &LinkState,
        connection: &mut Connection,
        channel: &mut BackendChannel,
    ) -> Result<bool, Box<dyn Error>> {
        let (mut changed, mut open) = (false, true);
        for _ in 0..CHANNEL_MESSAGES {
            match channel.receive()? {
                BackendMessage::None => break,
                BackendMessage::ConfigChange => changed = true,
                BackendMessage::Closed => {
                    open = false;
                    break;
                }
            }
        }
        if changed {
            let size = connection.reread()?.size;
            self.endpoint.known.resize(&self.endpoint.path, size, &state.log);
        }
        Ok(open)
    }

    fn reject<E: fmt::Display + ?Sized>(&self, state: &LinkState, error: &E) {
        if state.log.allows() {
            tracing::error!(path = %self.endpoint.path.display(), %error, "the disk's server breaks the protocol: rejected");
        }
        state.reject();
        state.push(LinkEvent::Faulty);
    }

    /// Connects, and starts the server's queues.
    fn connect<'a>(&self, state: &'a LinkState) -> Result<Session<'a>, FrontError> {
        let stream = (self.endpoint.connect)(&self.endpoint.path).map_err(system("cannot connect"))?;
        let mut connection = Connection::negotiate_within(stream, QUEUES, self.endpoint.timeout)?;
        let info = connection.info;
        self.endpoint.known.check(&info)?;
        let rings =
            SharedRings::new(info.queues, connection.event_idx()).map_err(system("cannot make the rings"))?;
        let kicks = (0..info.queues).map(|_| Kick::new(self.endpoint.io_uring, &self.threads));
        let kicks = kicks.collect::<Result<Vec<_>, _>>();
        let kicks = kicks.map_err(system("cannot make an event"))?;
        let theirs = kicks.iter().map(Kick::for_server).collect::<Result<Vec<_>, _>>();
        let theirs = theirs.map_err(system("cannot copy a descriptor"))?;
        let call = Call::new(state).map_err(system("cannot make an event"))?;
        let guest = self.memory()?;
        let channel = connection.open_channel()?;
        connection.start(&guest, &rings, &theirs, &call.event)?;
        let stream = connection.stream.try_clone();
        state.set_connection(stream.map_err(system("cannot copy a descriptor"))?);
        if state.log.allows() {
            tracing::info!(path = %self.endpoint.path.display(), queues = info.queues, "connected to the disk's server");
        }
        self.endpoint
            .known
            .resize(&self.endpoint.path, info.size, &state.log);
        state.push(LinkEvent::Connected { info, rings, kicks });
        Ok(Session {
            connection,
            channel,
            _call: call,
        })
    }

    /// Returns the memory table of the guest's RAM.
    fn memory(&self) -> Result<Vec<VhostUserMemoryRegionInfo>, FrontError> {
        let region = |part: &Extent| {
            let private = "the guest's memory has no descriptor, expected memory that can be shared";
            let (mmap_handle, mmap_offset) = part.file.ok_or_else(|| FrontError(private.into()))?;
            Ok(VhostUserMemoryRegionInfo {
                guest_phys_addr: part.start,
                memory_size: part.len,
                userspace_addr: part.host.addr() as u64,
                mmap_offset,
                mmap_handle,
            })
        };
        self.ram.extents().iter().map(region).collect()
    }
}
