//! A network device whose packets a vhost-user server transfers, on the driver's own rings.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use ringnet::{Net, NetConfig, SavedState};
use ringvhost::device::{Descriptors, Front, FrontOptions, NetServer, State};

use super::opener::{PortOpener, PortRequest, SOCKET, call, kick};

/// How long a server may take for an answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The descriptors of a server, from the process that keeps them.
struct Kept {
    opener: Arc<dyn PortOpener>,
    request: PortRequest,
}

impl Descriptors for Kept {
    fn socket(&self) -> io::Result<UnixStream> {
        Ok(self.opener.open(&self.request, SOCKET)?.into())
    }

    fn kick(&self, queue: u16) -> io::Result<OwnedFd> {
        self.opener.open(&self.request, kick(queue))
    }

    fn call(&self, queue: u16) -> io::Result<OwnedFd> {
        self.opener.open(&self.request, call(queue))
    }
}

/// Opens the device. `state`: what was said over the connection.
///
/// # Errors
/// There is no server and never was, or it cannot be used.
pub fn open(
    opener: &Arc<dyn PortOpener>,
    request: PortRequest,
    config: NetConfig,
    state: State,
    saved: SavedState,
) -> io::Result<Arc<Net>> {
    let options = FrontOptions {
        name: config.name.clone(),
        timeout: TIMEOUT,
        io_uring: true,
    };
    let opener = opener.clone();
    let pairs = request.pairs;
    let server = NetServer::new(Front::open(Arc::new(Kept { opener, request }), state, options)?);
    if server.pairs() < pairs {
        return Err(io::Error::other(format!(
            "the server has {} pairs of queues, expected {pairs} (queue_pairs)",
            server.pairs()
        )));
    }
    Ok(Net::served(config, Arc::new(server), Some(saved)))
}
