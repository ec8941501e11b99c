//! A vhost-user server's connection, and the event descriptors of its queues.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::bail;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

/// Connects to a server. Returns the descriptors of the port: the connection, then for each queue the one
/// that notifies the server, and the one by which it notifies.
///
/// # Errors
/// There is no server.
pub fn open(path: &Path, pairs: u16) -> anyhow::Result<Vec<OwnedFd>> {
    let mut descriptors = vec![connect(path)?];
    for _ in 0..2 * 2 * pairs {
        descriptors.push(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
    }
    Ok(descriptors)
}

/// Connects again if the connection has ended, on either side.
///
/// # Errors
/// There is no server.
pub fn renew(path: &Path, connection: &mut OwnedFd) -> anyhow::Result<()> {
    if has_ended(connection) {
        *connection = connect(path)?;
    }
    Ok(())
}

fn connect(path: &Path) -> anyhow::Result<OwnedFd> {
    match UnixStream::connect(path) {
        Ok(stream) => Ok(stream.into()),
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound => bail!("there is no socket: the server does not run"),
            io::ErrorKind::ConnectionRefused => bail!("no server listens there any more"),
            _ => bail!("cannot connect: {error}"),
        },
    }
}

fn has_ended(connection: &impl AsFd) -> bool {
    let mut descriptors = [PollFd::new(connection, PollFlags::RDHUP)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut descriptors, Some(&now)).is_ok_and(|ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use std::net::Shutdown;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::{open, renew};

    #[test]
    fn a_connection_is_renewed_when_it_has_ended() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sock");
        let error = open(&path, 1).unwrap_err().to_string();
        assert!(error.contains("does not run"), "{error}");
        let listener = UnixListener::bind(&path).unwrap();
        let mut descriptors = open(&path, 2).unwrap();
        assert_eq!(descriptors.len(), 9);
        let mut connection = descriptors.swap_remove(0);
        let first = (connection.as_raw_fd(), listener.accept().unwrap());
        renew(&path, &mut connection).unwrap();
        assert_eq!(connection.as_raw_fd(), first.0);
        // The daemon ends it, or the server.
        let copy = UnixStream::from(connection.try_clone().unwrap());
        copy.shutdown(Shutdown::Both).unwrap();
        renew(&path, &mut connection).unwrap();
        let (second, _) = listener.accept().unwrap();
        drop(second);
        renew(&path, &mut connection).unwrap();
        listener.accept().unwrap();
        drop(listener);
        let _ = UnixStream::from(connection.try_clone().unwrap()).shutdown(Shutdown::Both);
        let error = renew(&path, &mut connection).unwrap_err().to_string();
        assert!(error.contains("no server listens"), "{error}");
    }
}
