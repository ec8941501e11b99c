//! The keeper: `ringd --keep-ports`, with its listening socket as standard input.
//!
//! It does one request after the other, reads nothing that a guest or a client wrote, and ends when it keeps
//! nothing any more.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
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
use super::terminal::{self, Terminal};
use super::{Reply, Request, socket};
use crate::broker::wire;
use crate::device::net::opener::PortError;
use crate::signals::{ENDING, Signals};

/// How long a broker may take to send its request.
const TIMEOUT: Duration = Duration::from_secs(5);

/// All that is kept.
struct All {
    ports: Ports,
    /// Other ends of consoles by zone and number.
    consoles: BTreeMap<(String, usize), Terminal>,
    /// Pins of memory by zone.
    pins: BTreeMap<String, Vec<File>>,
}

/// Runs until nothing is kept.
///
/// # Errors
/// Standard input is no listening socket.
pub fn run(run_dir: &Path) -> anyhow::Result<()> {
    let _ = rustix::thread::set_name(c"ringd-ports");
    // Who ends all processes of a name means the daemon: zones go on, and with them what is kept for them.
    let _signals = Signals::block(&ENDING).context("cannot block signals")?;
    let listener = UnixListener::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut all = All {
        ports: Ports::new(run_dir),
        consoles: BTreeMap::new(),
        pins: BTreeMap::new(),
    };
    if let Err(error) = terminal::clean_up(run_dir) {
        tracing::warn!(%error, "cannot remove the names of ptys that another keeper has left");
    }
    loop {
        if !wait(&listener, &mut all.ports)? {
            continue;
        }
        let (stream, _) = listener.accept().context("cannot accept connections")?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        match serve(&stream, &mut all, run_dir) {
            // It was looked whether there is a keeper.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => continue,
            Err(error) => tracing::warn!(%error, "a request to the keeper was not answered"),
            Ok(()) => {}
        }
        if all.ports.is_empty() && all.consoles.is_empty() && all.pins.is_empty() {
            let _ = std::fs::remove_file(socket(run_dir));
            tracing::debug!("nothing is kept any more");
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

fn serve(stream: &UnixStream, all: &mut All, run_dir: &Path) -> io::Result<()> {
    let (request, sent) = wire::receive::<Request>(stream)?;
    let (reply, file) = match execute(request, sent, all, run_dir) {
        Ok(file) => (Reply::Done, file),
        Err(error) => (Reply::Failed(error), None),
    };
    wire::send(stream, &reply, file.as_ref())
}

fn execute(
    request: Request,
    sent: Option<File>,
    all: &mut All,
    run_dir: &Path,
) -> Result<Option<File>, PortError> {
    let All {
        ports,
        consoles,
        pins,
    } = all;
    let failed = |error: anyhow::Error| PortError::other(format!("{error:#}"));
    match request {
        Request::Open(request, number) => Ok(Some(ports.open(*request, number)?.into())),
        Request::OpenConsole(request, part) => {
            let key = (request.zone.clone(), request.index);
            // Another zone of that name, whose end was not reported.
            if consoles.get(&key).is_some_and(|kept| kept.request != request) {
                consoles.remove(&key);
            }
            let kept = match consoles.entry(key) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => entry.insert(Terminal::make(run_dir, request).map_err(failed)?),
            };
            Ok(Some(File::from(kept.part(part).map_err(failed)?)))
        }
        Request::Close(zone, index) => {
            ports.close(|(of, number)| *of == zone && index.is_none_or(|index| index == *number));
            consoles.retain(|(of, _), _| *of != zone || index.is_some());
            Ok(None)
        }
        Request::Pin(zone) => {
            pins.entry(zone)
                .or_default()
                .push(sent.ok_or_else(|| PortError::other("no pin came with it"))?);
            Ok(None)
        }
        Request::Pinned(zone) if pins.contains_key(&zone) => Ok(None),
        Request::Pinned(_) => Err(PortError::other("it is not pinned")),
        Request::Unpin(zone) => {
            pins.remove(&zone);
            Ok(None)
        }
        Request::End => Ok(None),
    }
}
