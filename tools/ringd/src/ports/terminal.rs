//! [`Terminal`]: a console's pty or listening socket, as the keeper has it.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, inotify};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

use crate::broker::connect;
use crate::control::server;
use crate::device::console::config::End;
use crate::device::console::opener::{ConsoleRequest, Part, directory, link};

/// The other end of a console.
pub struct Terminal {
    /// What was asked for.
    pub request: ConsoleRequest,
    kind: Kind,
    /// Removed when this is dropped, unless it is another file by then.
    path: PathBuf,
    /// Device and inode of the path.
    identity: Option<(u64, u64)>,
}

enum Kind {
    Pty {
        master: OwnedFd,
        /// Watches the other side for programs that open it.
        opened: OwnedFd,
    },
    Socket {
        listener: UnixListener,
        connection: Option<UnixStream>,
    },
}

impl Terminal {
    /// Makes a pty or a socket.
    ///
    /// # Errors
    /// The system's, or another program has the socket.
    pub fn make(run_dir: &Path, request: ConsoleRequest) -> anyhow::Result<Self> {
        let (kind, path) = match &request.end {
            End::Pty => {
                let path = link(run_dir, &request.zone, request.index);
                (pty(run_dir, &path).context("cannot make a pty")?, path)
            }
            End::Socket(path) => (listen(path)?, path.clone()),
        };
        let identity = identity(&path);
        Ok(Self {
            request,
            kind,
            path,
            identity,
        })
    }

    /// Returns a duplicate of one of its descriptors.
    ///
    /// # Errors
    /// It has none of this kind, or there is no connection.
    pub fn part(&mut self, part: Part) -> anyhow::Result<OwnedFd> {
        let duplicate = match (&mut self.kind, part) {
            (Kind::Pty { master, .. }, Part::Master) => master.try_clone(),
            (Kind::Pty { opened, .. }, Part::Opened) => opened.try_clone(),
            (Kind::Socket { listener, .. }, Part::Listener) => listener.as_fd().try_clone_to_owned(),
            (Kind::Socket { listener, connection }, Part::Connection) => {
                if connection.as_ref().is_none_or(has_ended) {
                    *connection = None;
                    let (next, _) = listener.accept().context("there is no connection")?;
                    next.set_nonblocking(true)?;
                    *connection = Some(next);
                }
                match connection {
                    Some(connection) => connection.as_fd().try_clone_to_owned(),
                    None => bail!("there is no connection"),
                }
            }
            (Kind::Pty { .. }, _) => bail!("it is a pty"),
            (Kind::Socket { .. }, _) => bail!("it is a socket"),
        };
        Ok(duplicate?)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if self.identity.is_some() && identity(&self.path) == self.identity {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let found = fs::symlink_metadata(path).ok()?;
    Some((found.dev(), found.ino()))
}

/// Makes a pty in raw mode, and its name.
fn pty(run_dir: &Path, path: &Path) -> anyhow::Result<Kind> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    // What is printed must not come back as input, whatever a program at the other side has set up.
    let mut modes = tcgetattr(&master)?;
    modes.make_raw();
    tcsetattr(&master, OptionalActions::Now, &modes)?;
    rustix::io::ioctl_fionbio(&master, true)?;
    let name = ptsname(&master, Vec::new())?;
    // Only what was open once counts as closed.
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    drop(rustix::fs::open(name.as_c_str(), flags, Mode::empty())?);
    let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
    let opened = inotify::init(flags)?;
    inotify::add_watch(&opened, name.as_c_str(), inotify::WatchFlags::OPEN)?;
    let directory = directory(run_dir);
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&directory)
        .with_context(|| format!("{}", directory.display()))?;
    let _ = fs::remove_file(path);
    symlink(name.to_str()?, path).with_context(|| format!("{}", path.display()))?;
    Ok(Kind::Pty { master, opened })
}

/// Makes a socket that listens, for root alone. One that a keeper was killed with is replaced.
fn listen(path: &Path) -> anyhow::Result<Kind> {
    if fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
        // The program that listens may never accept.
        match connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)?,
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                return Err(error).context("there is a socket of another kind");
            }
            _ => bail!("another program listens there"),
        }
    }
    let listener = server::listen(server::bind_for_owner(path)?)?;
    listener.set_nonblocking(true)?;
    Ok(Kind::Socket {
        listener,
        connection: None,
    })
}

/// Whether either side has ended a connection.
fn has_ended(connection: &UnixStream) -> bool {
    let mut descriptors = [PollFd::new(connection, PollFlags::RDHUP)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut descriptors, Some(&now)).is_ok_and(|ready| ready > 0)
}

/// Removes the names of ptys that a keeper was killed with.
///
/// # Errors
/// The system's.
pub fn clean_up(run_dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory(run_dir)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::{Read, Write};
    use std::os::fd::OwnedFd;
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::Terminal;
    use crate::device::console::config::End;
    use crate::device::console::opener::{ConsoleRequest, Part, link};

    fn request(end: End) -> ConsoleRequest {
        ConsoleRequest {
            zone: "z.1".into(),
            index: 2,
            end,
        }
    }

    #[test]
    fn a_pty_has_a_name_and_is_raw() {
        let directory = tempfile::tempdir().unwrap();
        let mut pty = Terminal::make(directory.path(), request(End::Pty)).unwrap();
        let name = link(directory.path(), "z.1", 2);
        let mut master = File::from(pty.part(Part::Master).unwrap());
        let mut opened = File::from(pty.part(Part::Opened).unwrap());
        let mut events = [0; 256];
        assert!(opened.read(&mut events).is_err(), "no program has opened it");
        let mut other = File::options().read(true).write(true).open(&name).unwrap();
        assert!(opened.read(&mut events).unwrap() > 0);
        master.write_all(b"a\n\x03").unwrap();
        let mut bytes = [0; 3];
        other.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"a\n\x03");
        // Nothing is echoed.
        assert!(master.read(&mut bytes).is_err());
        other.write_all(b"\r").unwrap();
        assert_eq!(master.read(&mut bytes).unwrap(), 1);
        assert!(pty.part(Part::Listener).is_err());
        drop(pty);
        assert!(fs::symlink_metadata(&name).is_err());
    }

    #[test]
    fn a_socket_has_one_connection_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console");
        let end = || request(End::Socket(path.clone()));
        let mut socket = Terminal::make(directory.path(), end()).unwrap();
        assert!(socket.part(Part::Connection).is_err());
        let error = Terminal::make(directory.path(), end()).map(drop).unwrap_err();
        assert!(error.to_string().contains("another program listens"), "{error}");
        // The connection was that of the second one's attempt.
        drop(socket.part(Part::Connection).unwrap());
        let mut first = UnixStream::connect(&path).unwrap();
        let receive = |from: OwnedFd| {
            let mut bytes = [0; 8];
            let len = File::from(from).read(&mut bytes).unwrap();
            String::from_utf8(bytes[..len].to_vec()).unwrap()
        };
        first.write_all(b"one").unwrap();
        assert_eq!(receive(socket.part(Part::Connection).unwrap()), "one");
        let mut second = UnixStream::connect(&path).unwrap();
        second.write_all(b"two").unwrap();
        first.write_all(b"more").unwrap();
        assert_eq!(receive(socket.part(Part::Connection).unwrap()), "more");
        drop(first);
        assert_eq!(receive(socket.part(Part::Connection).unwrap()), "two");
        // One that a killed keeper has left is replaced, and what is no socket is not.
        std::mem::forget(socket);
        fs::remove_file(&path).unwrap();
        fs::write(&path, "mine").unwrap();
        assert!(Terminal::make(directory.path(), end()).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
        fs::remove_file(&path).unwrap();
        drop(UnixListener::bind(&path).unwrap());
        Terminal::make(directory.path(), end()).unwrap();
    }

    #[test]
    fn what_belongs_to_another_program_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console");
        let make = || Terminal::make(directory.path(), request(End::Socket(path.clone())));
        let other = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
        assert!(make().map(drop).is_err());
        assert!(fs::symlink_metadata(&path).is_ok());
        drop(other);
        fs::remove_file(&path).unwrap();
        // A listener that accepts nothing, and has no room for another connection.
        let listener = UnixListener::bind(&path).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let waiting = std::iter::from_fn(|| crate::broker::connect(&path).ok());
        let waiting: Vec<File> = waiting.collect();
        assert!(!waiting.is_empty());
        let error = make().map(drop).unwrap_err().to_string();
        assert!(error.contains("another program listens"), "{error}");
        drop((listener, waiting));
        // Its own is for its owner alone, and another file in its place is not removed with it.
        let socket = make().unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        fs::remove_file(&path).unwrap();
        fs::write(&path, "mine").unwrap();
        drop(socket);
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
    }
}
