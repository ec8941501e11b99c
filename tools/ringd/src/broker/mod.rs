//! The privileged half of the daemon: does for the worker what requires root, and nothing else.
//!
//! The worker ([`crate::daemon`]) reads what guests wrote, so it has no privileges. What it needs later comes
//! over a socket: CPUs taken offline and back, huge pages and their physical addresses, images and kernels
//! opened, zones made and ended at EL2 ([`custody`]); all of it only if a user has asked for it ([`grants`]).
//! The broker is one thread that answers one request after the other ([`Broker`]), one for commands to EL2,
//! one for what users ask, and one for each file that is being opened ([`mod@opening`]); the worker's side is
//! a [`Host`] and an [`Opener`](ringblk::Opener) ([`client`]). [`wire`] carries messages and descriptors.
//!
//! Both live and die together: the worker ends with the broker (PR_SET_PDEATHSIG), the broker with the
//! worker.

pub mod client;
pub mod custody;
pub mod grants;
mod opening;
pub mod wire;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{io, process};

use anyhow::{Context as _, bail};
use parking_lot::Mutex;
use ringvisor::abi::command::Header;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use zerocopy::{FromBytes, IntoBytes};

use crate::config::is_zone_name;
use crate::device::console::opener::{ConsoleRequest, Part};
use crate::device::net::opener::{PortError, PortRequest};
use crate::host::{Host, Linux, RamError, RamFile, ram};
use crate::hv::NOT_GRANTED;
use crate::hv::control::ControlPage;
use crate::instance::{self, Condition};
use crate::ports;
use crate::ports::client::Keeper;
use custody::Custody;
use grants::Grants;
use opening::Opening;

/// Status of a worker that ends to let an upgrade happen.
pub const STATUS_UPGRADE: i32 = 71;
/// How long a new program may take to say whether it can take over.
const CHECK_TIMEOUT: Duration = Duration::from_secs(20);

/// A request of the worker.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Takes a CPU offline or brings it back online.
    SetOnline(u32, bool),
    /// Makes RAM for a zone, of this size in bytes.
    CreateRam(String, u64),
    /// Opens the RAM that an earlier daemon made.
    OpenRam(String, u64),
    /// Frees a zone's RAM, and returns this number of pages from the pool to root.
    RemoveRam(String, u64),
    /// Opens a file: its path, whether to write, more `O_` flags. With a socket for the reply, which may come
    /// after those to later requests.
    Open(PathBuf, bool, i32),
    /// Connects to the socket of a device's server.
    Connect(PathBuf),
    /// Opens a pair of queues of a network port, or returns the one that is kept.
    OpenPort(Box<PortRequest>, u16),
    /// Makes the pty or socket of a console, or returns a descriptor of the one that is kept.
    OpenConsole(ConsoleRequest, Part),
    /// Closes the network ports, ptys and sockets of a zone, or the port of the device with this number.
    ClosePorts(String, Option<usize>),
    /// Lets another program take over, by default of the same path; EL2's version of the interface.
    Upgrade(Option<PathBuf>, u32),
}

/// A message of the connection for commands: one that does not serve zones, for EL2, or what EL2 has made of
/// it ([`Header`]).
#[derive(Debug, Serialize, Deserialize)]
pub struct Command {
    header: Vec<u8>,
    payload: Vec<u8>,
}

impl Command {
    /// Returns a message of a command.
    pub fn new(header: Header, payload: &[u8]) -> Self {
        let (header, payload) = (header.as_bytes().to_vec(), payload.to_vec());
        Self { header, payload }
    }

    /// Returns the header.
    ///
    /// # Errors
    /// The message has no header of a command.
    pub fn header(&self) -> io::Result<Header> {
        let parsed = Header::read_from_bytes(&self.header);
        parsed.map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
    }
}

/// The broker's reply; a descriptor may come with it.
#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    /// It is done.
    Done,
    /// RAM: physical addresses of its blocks, pages added to the pool.
    Ram(Vec<u64>, u64),
    /// It failed.
    Failed(Failure),
}

/// Why it failed.
#[derive(Debug, Serialize, Deserialize)]
pub enum Failure {
    /// The system's error number.
    Os(i32),
    /// Another error, for people; of those of RAM the kind matters.
    Ram(RamError),
    /// A port cannot be opened.
    Port(PortError),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match (error.raw_os_error(), PortError::of(&error)) {
            (Some(number), _) => Self::Os(number),
            (None, Some(port)) => Self::Port(port.clone()),
            (None, None) => Self::Ram(error.into()),
        }
    }
}

impl From<RamError> for Failure {
    fn from(error: RamError) -> Self {
        Self::Ram(error)
    }
}

impl From<Failure> for io::Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Os(number) => Self::from_raw_os_error(number),
            Failure::Ram(error) => Self::other(error.to_string()),
            Failure::Port(error) => Self::other(error),
        }
    }
}

impl From<Failure> for RamError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Os(number) => io::Error::from_raw_os_error(number).into(),
            Failure::Ram(error) => error,
            Failure::Port(error) => Self::Other(error.to_string()),
        }
    }
}

/// The privileged half.
pub struct Broker {
    host: Linux,
    el2: Arc<ControlPage>,
    custody: Arc<Mutex<Custody>>,
    /// What users have asked for, from [`Self::run`] on: an earlier broker may still add to its file.
    grants: Arc<Mutex<Grants>>,
    /// Keeps network ports and pins of memory.
    keeper: Keeper,
    run_dir: PathBuf,
    /// This program.
    program: PathBuf,
    /// Its options, which the next program is to understand.
    options: Vec<String>,
    /// The program of a granted upgrade.
    next: Option<PathBuf>,
    opening: Opening,
}

/// The unprivileged half. It ends by itself when the broker does, since the socket's other end is closed
/// then.
pub struct Worker {
    process: Child,
    socket: UnixStream,
}

impl Worker {
    /// Waits for a text line on standard input, by which the supervisor says that the last daemon is dead.
    /// Returns `false` if none will come, or the worker has ended.
    ///
    /// # Errors
    /// The system refused.
    pub fn wait_for_turn(&self) -> io::Result<bool> {
        let input = rustix::stdio::stdin();
        loop {
            let mut descriptors = [
                PollFd::new(&input, PollFlags::IN),
                PollFd::new(&self.socket, PollFlags::IN),
            ];
            match poll(&mut descriptors, None) {
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
                Ok(_) => {}
            }
            let [input_ready, gone] = descriptors.map(|descriptor| !descriptor.revents().is_empty());
            if input_ready {
                let mut byte = [0];
                return Ok(rustix::io::read(input, &mut byte)? == 1);
            }
            if gone {
                return Ok(false);
            }
        }
    }
}

/// Why the broker ends.
pub enum BrokerEnd {
    /// The worker has ended; why.
    Ended(String),
    /// This program takes over.
    Upgrade(PathBuf),
}

impl Broker {
    /// Returns a broker on this machine, which has mapped the control device.
    ///
    /// # Errors
    /// There is no hugetlbfs, or no control device of an EL2 of this version.
    pub fn new(run_dir: &Path, options: Vec<String>) -> anyhow::Result<Self> {
        let root = PathBuf::from("/");
        let program = std::env::current_exe().context("cannot find this program")?;
        let host = Linux::new(root.clone()).context("no huge pages can be used")?;
        let shared = host
            .shared_page()
            .context("cannot get the page that is shared with EL2")?;
        let el2 = ControlPage::prepare(&root, &shared, |address| ram::physical(&root, address));
        let el2 = Arc::new(el2.context("cannot attach to the hypervisor")?);
        Ok(Self {
            host,
            custody: Arc::new(Mutex::new(Custody::new(el2.clone()))),
            el2,
            grants: Arc::default(),
            run_dir: run_dir.to_owned(),
            keeper: Keeper::new(run_dir.to_owned(), program.clone(), options.clone()),
            program,
            options,
            next: None,
            opening: Opening::default(),
        })
    }

    /// Starts the worker with these arguments; it prepares itself and waits for [`Self::run`].
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(&self, arguments: &[String]) -> anyhow::Result<Worker> {
        let (ours, theirs) = UnixStream::pair().context("no socket for the worker")?;
        let process = process::Command::new(&self.program)
            .args(arguments)
            .stdin(OwnedFd::from(theirs))
            .spawn()
            .context("cannot start the worker")?;
        Ok(Worker {
            process,
            socket: ours,
        })
    }

    /// Attaches to EL2, passes the run lock to the worker, and serves it until it ends.
    ///
    /// # Errors
    /// EL2 refuses, or the worker has ended already.
    pub fn run(mut self, worker: Worker, lock: &File) -> anyhow::Result<BrokerEnd> {
        let Worker {
            mut process,
            socket: ours,
        } = worker;
        if let Err(error) = self.el2.attach() {
            // The worker ends when its socket is closed.
            return Err(error.context("cannot attach to the hypervisor"));
        }
        let users = grants::listen(&self.run_dir).context("cannot listen for what users ask")?;
        *self.grants.lock() = Grants::load(&self.run_dir).context("cannot read what users asked for")?;
        let (granted, custody) = (self.grants.clone(), self.custody.clone());
        std::thread::Builder::new()
            .name("grants".into())
            .spawn(move || grants::serve(&users, &granted, &custody))
            .context("cannot start a thread for what users ask")?;
        wire::send(&ours, &Reply::Done, Some(lock)).context("cannot greet the worker")?;
        // Commands have a connection of their own: a zone that is to stop does not wait for the memory of
        // another.
        let (commands, theirs) = UnixStream::pair().context("no socket for the worker")?;
        wire::send(&ours, &Reply::Done, Some(&File::from(OwnedFd::from(theirs))))
            .context("cannot greet the worker")?;
        let custody = self.custody.clone();
        std::thread::Builder::new()
            .name("commands".into())
            .spawn(move || serve_commands(&commands, &custody))
            .context("cannot start a thread for commands")?;
        if let Err(error) = self.serve(&ours, process.id())
            && error.kind() != io::ErrorKind::UnexpectedEof
        {
            tracing::error!(%error, "lost the connection to the worker");
            let _ = process.kill();
        }
        self.end(&mut process)
    }

    fn end(self, worker: &mut Child) -> anyhow::Result<BrokerEnd> {
        let status = worker.wait().context("cannot wait for the worker")?;
        Ok(match (status.code(), self.next) {
            (Some(STATUS_UPGRADE), Some(next)) => BrokerEnd::Upgrade(next),
            (Some(crate::sandbox::STATUS_VIOLATION), _) => {
                BrokerEnd::Ended("it made a system call that it may not make".into())
            }
            _ => BrokerEnd::Ended(crate::supervise::cause(status)),
        })
    }

    fn serve(&mut self, socket: &UnixStream, worker: u32) -> io::Result<()> {
        loop {
            self.wait(socket, worker)?;
            let (request, answer) = wire::receive::<Request>(socket)?;
            tracing::debug!(?request, "request of the worker");
            if let (Request::Open(path, write, flags), Some(answer)) = (&request, answer) {
                let granted = self.grants.lock().may_open(path, *write, *flags);
                if !granted {
                    tracing::warn!(path = %path.display(), write, "the worker asked for a file that no user has named");
                }
                self.opening.start(path.clone(), *write, *flags, granted, answer);
                continue;
            }
            match self.execute(request) {
                Ok((reply, file)) => wire::send(socket, &reply, file.as_ref())?,
                Err(failure) => wire::send(socket, &Reply::Failed(failure), None)?,
            }
        }
    }

    /// Waits until the worker sends a request or has ended. A worker that was killed ends only when its last
    /// system call has returned; if that takes long, it is logged.
    fn wait(&self, socket: &UnixStream, worker: u32) -> io::Result<()> {
        let second = Timespec {
            tv_sec: 1,
            tv_nsec: 0,
        };
        let mut waited = 0_u64;
        loop {
            let mut descriptors = [PollFd::new(socket, PollFlags::IN)];
            match poll(&mut descriptors, Some(&second)) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
            if instance::condition(worker) == Condition::Dying {
                if waited.is_multiple_of(instance::REMINDER.as_secs()) {
                    tracing::warn!(
                        worker,
                        "the worker was killed, but I/O that it began has not completed: waiting for it"
                    );
                }
                waited += 1;
            }
        }
    }

    /// Checks that memory for a zone of this name may be made or removed.
    fn claim(&self, zone: &str) -> Result<(), RamError> {
        zone_name(zone)?;
        match self.custody.lock().claim(zone) {
            true => Ok(()),
            false => Err(RamError::Other(format!(
                "EL2 has a zone {zone}, whose memory is in use"
            ))),
        }
    }

    fn execute(&mut self, request: Request) -> Result<(Reply, Option<File>), Failure> {
        match request {
            Request::SetOnline(cpu, online) => {
                if !online {
                    granted(self.grants.lock().take_cpu(cpu)?, &format!("CPU {cpu}"))?;
                }
                let set = self.host.set_online(cpu, online);
                if online == set.is_ok() {
                    self.grants.lock().return_cpu(cpu)?;
                }
                set?;
            }
            Request::CreateRam(zone, bytes) => {
                self.claim(&zone)?;
                granted(self.grants.lock().may_make(&zone, bytes), &format!("zone {zone}"))?;
                return self.create_ram(&zone, bytes).map_err(Into::into);
            }
            Request::OpenRam(zone, bytes) => {
                zone_name(&zone)?;
                let file = self.host.open_ram_file(&zone, bytes)?;
                // An earlier broker had it pinned, unless the keeper was killed.
                if self.keeper.call(&ports::Request::Pinned(zone.clone())).is_err() {
                    tracing::warn!(zone, "its memory was not pinned any more");
                    self.pin(&zone, &ram::map(file.try_clone()?, bytes)?.pin()?)?;
                }
                return Ok((Reply::Done, Some(file)));
            }
            Request::RemoveRam(zone, added) => {
                self.claim(&zone)?;
                self.keeper.call(&ports::Request::Unpin(zone.clone()))?;
                self.host.remove_ram(&zone, added)?;
                self.grants.lock().ended(&zone)?;
            }
            Request::Open(..) => return Err(RamError::Other("no socket for the reply".into()).into()),
            Request::Connect(path) => {
                let shown = path.display().to_string();
                granted(self.grants.lock().may_connect(&path), &shown)?;
                return Ok((Reply::Done, Some(connect(&path)?)));
            }
            Request::OpenPort(request, pair) => {
                zone_name(&request.zone)?;
                let asked = self.grants.lock().may_open_port(&request);
                granted(asked, &format!("a network port of zone {}", request.zone))?;
                let opened = self.keeper.call(&ports::Request::Open(request, pair))?;
                return Ok((Reply::Done, opened));
            }
            Request::OpenConsole(request, part) => {
                zone_name(&request.zone)?;
                let asked = self.grants.lock().may_open_console(&request);
                let what = format!("console {} of zone {}", request.index, request.zone);
                granted(asked, &what)?;
                let opened = self.keeper.call(&ports::Request::OpenConsole(request, part))?;
                return Ok((Reply::Done, opened));
            }
            Request::ClosePorts(zone, index) => {
                zone_name(&zone)?;
                self.keeper.call(&ports::Request::Close(zone, index))?;
            }
            Request::Upgrade(path, abi) => {
                granted(self.grants.lock().take_upgrade(&path), "an upgrade")?;
                let path = path.unwrap_or_else(|| self.program.clone());
                check(&path, &self.options, abi).map_err(|error| RamError::Other(format!("{error:#}")))?;
                self.next = Some(path);
            }
        }
        Ok((Reply::Done, None))
    }

    /// Makes a zone's memory, which the keeper keeps from the pool whatever becomes of its file.
    fn create_ram(&self, zone: &str, bytes: u64) -> Result<(Reply, Option<File>), RamError> {
        // First: if it cannot be recorded, nothing is made.
        self.grants.lock().made(zone)?;
        self.keeper.call(&ports::Request::Unpin(zone.into()))?;
        // It starts while the memory is cleared.
        self.keeper.prepare()?;
        let made = self.host.create_ram_file(zone, bytes).and_then(|made| {
            let pinned = self.pin(zone, &made.pins);
            if pinned.is_err() {
                let _ = self.keeper.call(&ports::Request::Unpin(zone.into()));
                let _ = self.host.remove_ram(zone, made.added);
            }
            pinned.map(|()| made)
        });
        if made.is_err() {
            let _ = self.keeper.call(&ports::Request::End);
        }
        let RamFile {
            file, blocks, added, ..
        } = made?;
        self.custody.lock().made(zone, &blocks);
        Ok((Reply::Ram(blocks, added), Some(file)))
    }

    fn pin(&self, zone: &str, pins: &[File]) -> Result<(), RamError> {
        for pin in pins {
            self.keeper
                .call_with(&ports::Request::Pin(zone.into()), Some(pin))?;
        }
        Ok(())
    }
}

/// Refuses what no user has asked for.
fn granted(asked: bool, what: &str) -> Result<(), RamError> {
    if asked {
        return Ok(());
    }
    tracing::warn!(what, "the worker asked for what no user has asked for");
    Err(RamError::Other(grants::refusal(what)))
}

/// Has EL2 execute the worker's commands until the worker ends.
fn serve_commands(socket: &UnixStream, custody: &Mutex<Custody>) {
    while let Ok((command, _)) = wire::receive::<Command>(socket) {
        let Ok(asked) = command.header() else { break };
        let done = custody.lock().execute(asked, &command.payload);
        let done = done.unwrap_or_else(|refusal| {
            if refusal.status == NOT_GRANTED {
                tracing::warn!(%refusal, "the worker asked for what no zone has been given");
            }
            Header {
                status: refusal.status,
                detail: refusal.detail,
                ..asked
            }
        });
        if wire::send(socket, &Command::new(done, &[]), None).is_err() {
            break;
        }
    }
}

fn zone_name(zone: &str) -> Result<(), RamError> {
    match is_zone_name(zone) {
        true => Ok(()),
        false => Err(RamError::Other(format!("{zone:?} is no zone's name"))),
    }
}

/// Connects without waiting: a server that does not accept must not keep the broker from its work.
///
/// # Errors
/// The system's; `WouldBlock` if the server has no room for another connection.
pub fn connect(path: &Path) -> io::Result<File> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::io::ioctl_fionbio(&socket, false)?;
    Ok(File::from(socket))
}

/// Asks a program whether it can take over from this one.
fn check(program: &Path, options: &[String], abi: u32) -> anyhow::Result<()> {
    let shown = program.display();
    let mut child = process::Command::new(program)
        .args(["--check-takeover", &abi.to_string()])
        .args(options)
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {shown}"))?;
    let deadline = Instant::now() + CHECK_TIMEOUT;
    while child.try_wait()?.is_none() {
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            bail!("{shown} does not say within {CHECK_TIMEOUT:?} whether it can take over");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output()?;
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    if !output.status.success() {
        bail!("{shown} cannot take over: {}", err.trim());
    }
    if out.trim() != crate::upgrade::CAN {
        bail!("{shown} is no ringd that can take over: it says {:?}", out.trim());
    }
    Ok(())
}
