//! The privileged half of the daemon: does for the worker what requires root, and nothing else.
//!
//! The worker ([`crate::daemon`]) reads what guests wrote, so it has no privileges. What it needs later comes
//! over a socket: CPUs taken offline and back, huge pages and their physical addresses, images and kernels
//! opened. The broker is one thread that answers one request after the other ([`Broker`]), and one for each
//! file that is being opened ([`mod@opening`]); the worker's side is a [`Host`] and an
//! [`Opener`](ringblk::Opener) ([`client`]). [`wire`] carries messages and descriptors.
//!
//! Both live and die together: the worker ends with the broker (PR_SET_PDEATHSIG), the broker with the
//! worker.

pub mod client;
mod opening;
pub mod wire;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::config::is_zone_name;
use crate::device::net::opener::{PortError, PortRequest};
use crate::host::{Host, Linux, RamError};
use crate::instance::{self, Condition};
use crate::ports;
use crate::ports::client::Keeper;
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
    /// Closes the network ports of a zone, or the one of the device with this number.
    ClosePorts(String, Option<usize>),
    /// Lets another program take over, by default of the same path; EL2's version of the interface.
    Upgrade(Option<PathBuf>, u32),
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
    /// Keeps network ports.
    keeper: Keeper,
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
    /// Returns a broker on this machine.
    ///
    /// # Errors
    /// There is no hugetlbfs.
    pub fn new(run_dir: &Path, options: Vec<String>) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("cannot find this program")?;
        Ok(Self {
            host: Linux::new("/".into()).context("no huge pages can be used")?,
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
        let process = Command::new(&self.program)
            .args(arguments)
            .stdin(OwnedFd::from(theirs))
            .spawn()
            .context("cannot start the worker")?;
        Ok(Worker {
            process,
            socket: ours,
        })
    }

    /// Passes the run lock to the worker, and serves it until it ends.
    ///
    /// # Errors
    /// The worker has ended already.
    pub fn run(mut self, worker: Worker, lock: &File) -> anyhow::Result<BrokerEnd> {
        let Worker {
            mut process,
            socket: ours,
        } = worker;
        wire::send(&ours, &Reply::Done, Some(lock)).context("cannot greet the worker")?;
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
                self.opening.start(path.clone(), *write, *flags, answer);
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

    fn execute(&mut self, request: Request) -> Result<(Reply, Option<File>), Failure> {
        let named = |zone: &str| match is_zone_name(zone) {
            true => Ok(()),
            false => Err(RamError::Other(format!("{zone:?} is no zone's name"))),
        };
        match request {
            Request::SetOnline(cpu, online) => self.host.set_online(cpu, online)?,
            Request::CreateRam(zone, bytes) => {
                named(&zone)?;
                let (file, blocks, added) = self.host.create_ram_file(&zone, bytes)?;
                return Ok((Reply::Ram(blocks, added), Some(file)));
            }
            Request::OpenRam(zone, bytes) => {
                named(&zone)?;
                return Ok((Reply::Done, Some(self.host.open_ram_file(&zone, bytes)?)));
            }
            Request::RemoveRam(zone, added) => {
                named(&zone)?;
                self.host.remove_ram(&zone, added)?;
            }
            Request::Open(..) => return Err(RamError::Other("no socket for the reply".into()).into()),
            Request::Connect(path) => return Ok((Reply::Done, Some(connect(&path)?))),
            Request::OpenPort(request, pair) => {
                named(&request.zone)?;
                let opened = self.keeper.call(&ports::Request::Open(request, pair))?;
                return Ok((Reply::Done, opened));
            }
            Request::ClosePorts(zone, index) => {
                named(&zone)?;
                self.keeper.call(&ports::Request::Close(zone, index))?;
            }
            Request::Upgrade(path, abi) => {
                let path = path.unwrap_or_else(|| self.program.clone());
                check(&path, &self.options, abi).map_err(|error| RamError::Other(format!("{error:#}")))?;
                self.next = Some(path);
            }
        }
        Ok((Reply::Done, None))
    }
}

/// Connects without waiting: a server that does not accept must not keep the broker from its work.
fn connect(path: &Path) -> io::Result<File> {
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
    let mut child = Command::new(program)
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
