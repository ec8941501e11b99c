//! [`Client`]: the worker's side of the broker.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::{Answer, Ask, Failure, wire};
use crate::host::{Cpu, Host, Ram, RamError, cpus, ram};

/// Root Linux by way of the broker. One request at a time.
pub struct Client {
    socket: Mutex<UnixStream>,
}

impl Client {
    /// Returns the broker at the other end of `socket`, and the run lock, to be held as long as this process
    /// lives.
    ///
    /// # Errors
    /// The broker has ended.
    pub fn new(socket: UnixStream) -> io::Result<(Self, Option<File>)> {
        let (_, lock) = wire::receive::<Answer>(&socket)?;
        let socket = Mutex::new(socket);
        Ok((Self { socket }, lock))
    }

    fn ask(&self, ask: &Ask) -> Result<(Answer, Option<File>), Failure> {
        let socket = self
            .socket
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        wire::send(&socket, ask, None)?;
        match wire::receive(&socket)? {
            (Answer::Failed(failure), _) => Err(failure),
            answer => Ok(answer),
        }
    }

    fn ask_file(&self, ask: &Ask) -> Result<(Answer, File), Failure> {
        let (answer, file) = self.ask(ask)?;
        let file = file.ok_or_else(|| Failure::Other("the broker sent no descriptor".into()))?;
        Ok((answer, file))
    }

    /// Returns a connection to the socket of a device's server, without waiting for it.
    ///
    /// # Errors
    /// No server listens there, or its backlog is full.
    pub fn connect(&self, path: &Path) -> io::Result<UnixStream> {
        let (_, file) = self.ask_file(&Ask::Connect(path.to_owned()))?;
        Ok(UnixStream::from(OwnedFd::from(file)))
    }

    /// Asks for an upgrade to another program; granted, it happens when this process ends with
    /// [`super::STATUS_UPGRADE`].
    ///
    /// # Errors
    /// The other program cannot take over; why.
    pub fn upgrade(&self, program: Option<PathBuf>, abi: u32) -> io::Result<()> {
        self.ask(&Ask::Upgrade(program, abi))
            .map(drop)
            .map_err(Into::into)
    }
}

impl Host for Client {
    fn cpus(&self) -> io::Result<Vec<Cpu>> {
        cpus::list(Path::new("/"))
    }

    fn set_online(&self, cpu: u32, online: bool) -> io::Result<()> {
        self.ask(&Ask::SetOnline(cpu, online))
            .map(drop)
            .map_err(Into::into)
    }

    fn create_ram(&self, zone: &str, bytes: u64) -> Result<Ram, RamError> {
        let (answer, file) = self.ask_file(&Ask::CreateRam(zone.into(), bytes))?;
        let Answer::Ram(blocks, added) = answer else {
            return Err(RamError::Map("the broker sent no block list".into()));
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
        let (_, file) = self.ask_file(&Ask::OpenRam(zone.into(), bytes))?;
        ram::map(file, bytes)
    }

    fn remove_ram(&self, zone: &str, added: u64) -> io::Result<()> {
        self.ask(&Ask::RemoveRam(zone.into(), added))
            .map(drop)
            .map_err(Into::into)
    }
}

impl ringblk::Opener for Client {
    fn open(&self, path: &Path, write: bool, flags: i32) -> io::Result<File> {
        let (_, file) = self.ask_file(&Ask::Open(path.to_owned(), write, flags))?;
        Ok(file)
    }
}
