//! [`Client`]: the worker's side of the broker.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use ringvisor::abi::command::{CommandStatus, Header, Op};

use super::{Command, Failure, Reply, Request, wire};
use crate::device::console::opener::{ConsoleOpener, ConsoleRequest, Part};
use crate::device::net::opener::{PortOpener, PortRequest};
use crate::host::{Cpu, Host, Ram, RamError, cpus, ram};
use crate::hv::{Control, NOT_GRANTED, Refusal};

/// Root Linux and EL2's control page by way of the broker. One request and one command at a time, except for
/// files that are being opened.
pub struct Client {
    socket: Mutex<UnixStream>,
    /// The connection for commands.
    commands: Mutex<UnixStream>,
}

impl Client {
    /// Returns the broker at the other end of `socket`, and the run lock, to be held as long as this process
    /// lives.
    ///
    /// # Errors
    /// The broker has ended.
    pub fn new(socket: UnixStream) -> io::Result<(Self, Option<File>)> {
        let (_, lock) = wire::receive::<Reply>(&socket)?;
        let (_, commands) = wire::receive::<Reply>(&socket)?;
        let commands = commands.ok_or_else(|| io::Error::other("the broker sent no descriptor"))?;
        let client = Self {
            socket: Mutex::new(socket),
            commands: Mutex::new(OwnedFd::from(commands).into()),
        };
        Ok((client, lock))
    }

    fn call(&self, request: &Request) -> Result<(Reply, Option<File>), Failure> {
        let socket = self.socket.lock();
        wire::send(&socket, request, None)?;
        match wire::receive(&socket)? {
            (Reply::Failed(failure), _) => Err(failure),
            reply => Ok(reply),
        }
    }

    fn call_for_file(&self, request: &Request) -> Result<(Reply, File), Failure> {
        let (reply, file) = self.call(request)?;
        let file = file.ok_or_else(|| RamError::Other("the broker sent no descriptor".into()))?;
        Ok((reply, file))
    }

    /// Returns a connection to the socket of a device's server, without waiting for it.
    ///
    /// # Errors
    /// No server listens there, or its backlog is full.
    pub fn connect(&self, path: &Path) -> io::Result<UnixStream> {
        let (_, file) = self.call_for_file(&Request::Connect(path.to_owned()))?;
        Ok(UnixStream::from(OwnedFd::from(file)))
    }

    /// Asks for an upgrade to another program; granted, it happens when this process ends with
    /// [`super::STATUS_UPGRADE`].
    ///
    /// # Errors
    /// The other program cannot take over; why.
    pub fn upgrade(&self, program: Option<PathBuf>, abi: u32) -> io::Result<()> {
        self.call(&Request::Upgrade(program, abi))
            .map(drop)
            .map_err(Into::into)
    }
}

impl Host for Client {
    fn cpus(&self) -> io::Result<Vec<Cpu>> {
        cpus::list(Path::new("/"))
    }

    fn set_online(&self, cpu: u32, online: bool) -> io::Result<()> {
        self.call(&Request::SetOnline(cpu, online))
            .map(drop)
            .map_err(Into::into)
    }

    fn create_ram(&self, zone: &str, bytes: u64) -> Result<Ram, RamError> {
        let (reply, file) = self.call_for_file(&Request::CreateRam(zone.into(), bytes))?;
        let Reply::Ram(blocks, added) = reply else {
            return Err(RamError::map("the broker sent no block list"));
        };
        let mapped = ram::map(file, bytes);
        if mapped.is_err() {
            let _ = self.remove_ram(zone, added);
        }
        Ok(Ram {
            blocks,
            added,
            ..mapped?
        })
    }

    fn open_ram(&self, zone: &str, bytes: u64) -> Result<Ram, RamError> {
        let (_, file) = self.call_for_file(&Request::OpenRam(zone.into(), bytes))?;
        ram::map(file, bytes)
    }

    fn remove_ram(&self, zone: &str, added: u64) -> io::Result<()> {
        self.call(&Request::RemoveRam(zone.into(), added))
            .map(drop)
            .map_err(Into::into)
    }
}

impl PortOpener for Client {
    fn open(&self, request: &PortRequest, pair: u16) -> io::Result<OwnedFd> {
        let (_, file) = self.call_for_file(&Request::OpenPort(Box::new(request.clone()), pair))?;
        Ok(file.into())
    }

    fn close(&self, zone: &str, index: Option<usize>) -> io::Result<()> {
        self.call(&Request::ClosePorts(zone.into(), index))
            .map(drop)
            .map_err(Into::into)
    }
}

impl ConsoleOpener for Client {
    fn open(&self, request: &ConsoleRequest, part: Part) -> io::Result<OwnedFd> {
        let (_, file) = self.call_for_file(&Request::OpenConsole(request.clone(), part))?;
        Ok(file.into())
    }
}

impl ringblk::Opener for Client {
    fn open(&self, path: &Path, write: bool, flags: i32) -> io::Result<File> {
        let (answer, theirs) = UnixStream::pair()?;
        let theirs = File::from(OwnedFd::from(theirs));
        wire::send(
            &self.socket.lock(),
            &Request::Open(path.to_owned(), write, flags),
            Some(&theirs),
        )?;
        drop(theirs);
        // Other requests go on meanwhile.
        match wire::receive(&answer)? {
            (Reply::Failed(failure), _) => Err(failure.into()),
            (_, file) => file.ok_or_else(|| io::Error::other("the broker sent no descriptor")),
        }
    }
}

impl Control for Client {
    fn command(&self, header: Header, payload: &[u8], _: &mut [u8]) -> Result<Header, Refusal> {
        let op = Op::try_from(header.op).ok();
        let refused = |status, detail| Refusal { op, status, detail };
        let socket = self.commands.lock();
        let done = wire::send(&socket, &Command::new(header, payload), None)
            .and_then(|()| wire::receive::<Command>(&socket));
        match done.and_then(|(done, _)| done.header()) {
            Ok(done) if done.status == CommandStatus::Ok as u32 => Ok(done),
            Ok(done) => Err(refused(done.status, done.detail)),
            // It has ended, and this process is about to.
            Err(_) => Err(refused(NOT_GRANTED, 0)),
        }
    }
}
