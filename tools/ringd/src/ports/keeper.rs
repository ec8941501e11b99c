//! The keeper: `ringd --keep-ports`, with its listening socket as standard input.
//!
//! It does one request after the other, reads nothing that a guest or a client wrote, and ends when it keeps
//! nothing any more.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::kept::Ports;
use super::{Reply, Request, socket};
use crate::broker::wire;
use crate::device::net::opener::PortError;

/// How long a broker may take to send its request.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Runs until nothing is kept.
///
/// # Errors
/// Standard input is no listening socket.
pub fn run(run_dir: &Path) -> anyhow::Result<()> {
    let _ = rustix::thread::set_name(c"ringd-ports");
    let listener = UnixListener::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut ports = Ports::new(run_dir);
    loop {
        if !wait(&listener, &mut ports)? {
            continue;
        }
        let (stream, _) = listener.accept().context("cannot accept connections")?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        if let Err(error) = serve(&stream, &mut ports) {
            tracing::warn!(%error, "a request about ports was not answered");
        }
        if ports.is_empty() {
            let _ = std::fs::remove_file(socket(run_dir));
            tracing::debug!("no ports are kept any more");
            return Ok(());
        }
    }
}

/// Waits for a connection. Returns `false` if something else has happened.
fn wait(listener: &UnixListener, ports: &mut Ports) -> io::Result<bool> {
    let mut descriptors = vec![PollFd::new(listener, PollFlags::IN)];
    let network = ports.network();
    if let Some(ended) = network.as_ref().and_then(|network| network.server_ended()) {
        descriptors.push(PollFd::new(ended, PollFlags::IN));
    }
    match poll(&mut descriptors, None) {
        Err(Errno::INTR) => return Ok(false),
        other => other?,
    };
    let ready = |index: usize| {
        descriptors
            .get(index)
            .is_some_and(|one| !one.revents().is_empty())
    };
    let (connection, ended) = (ready(0), ready(1));
    drop(descriptors);
    if ended && let Some(network) = network {
        network.restart_server();
    }
    Ok(connection)
}

fn serve(stream: &UnixStream, ports: &mut Ports) -> io::Result<()> {
    let (request, _) = wire::receive::<Request>(stream)?;
    let (reply, file) = match execute(request, ports) {
        Ok(file) => (Reply::Done, file),
        Err(error) => (Reply::Failed(error), None),
    };
    wire::send(stream, &reply, file.as_ref())
}

fn execute(request: Request, ports: &mut Ports) -> Result<Option<File>, PortError> {
    match request {
        Request::Open(request, number) => Ok(Some(ports.open(*request, number)?.into())),
        Request::Close(zone, index) => {
            ports.close(|(of, number)| *of == zone && index.is_none_or(|index| index == *number));
            Ok(None)
        }
    }
}
