//! The keeper: `ringd --keep-ports`, with its listening socket as standard input.
//!
//! It does one request after the other, reads nothing that a guest or a client wrote, and ends when it keeps
//! nothing any more.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};

use super::interface::{self, Bridge};
use super::passt::Passt;
use super::{Reply, Request, server, socket};
use crate::broker::wire;
use crate::device::net::config::Source;
use crate::device::net::opener::{PortRequest, SOCKET};
use crate::signals::{ENDING, Signals};

/// How long a broker may take to send its request.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A port that is kept.
struct Kept {
    request: PortRequest,
    queues: Vec<OwnedFd>,
    /// Ends with the port.
    _passt: Option<Passt>,
    /// The bridge that it is on.
    _bridge: Option<Bridge>,
}

/// All that is kept.
#[derive(Default)]
struct All {
    /// Ports by zone and number.
    ports: BTreeMap<(String, usize), Kept>,
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
    let mut all = All::default();
    loop {
        let (stream, _) = listener.accept().context("cannot accept connections")?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        match serve(&stream, &mut all) {
            // It was looked whether there is a keeper.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => continue,
            Err(error) => tracing::warn!(%error, "a request to the keeper was not answered"),
            Ok(()) => {}
        }
        if all.ports.is_empty() && all.pins.is_empty() {
            let _ = std::fs::remove_file(socket(run_dir));
            tracing::debug!("nothing is kept any more");
            return Ok(());
        }
    }
}

fn serve(stream: &UnixStream, all: &mut All) -> io::Result<()> {
    let (request, sent) = wire::receive::<Request>(stream)?;
    let (reply, file) = match execute(request, sent, all) {
        Ok(file) => (Reply::Done, file),
        Err(error) => (Reply::Failed(format!("{error:#}")), None),
    };
    wire::send(stream, &reply, file.as_ref())
}

fn execute(request: Request, sent: Option<File>, all: &mut All) -> anyhow::Result<Option<File>> {
    let All { ports, pins } = all;
    match request {
        Request::Open(request, pair) => {
            let key = (request.zone.clone(), request.index);
            // Another zone of that name, whose end was not reported.
            if ports
                .get(&key)
                .is_some_and(|kept| kept.request != request || kept.has_ended())
            {
                ports.remove(&key);
            }
            let kept = match ports.entry(key) {
                std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
                std::collections::btree_map::Entry::Vacant(entry) => entry.insert(open(request)?),
            };
            if let (Source::VhostUser(path), Some(connection)) =
                (&kept.request.source, kept.queues.first_mut())
                && pair == SOCKET
            {
                server::renew(path, connection)?;
            }
            let queue = kept
                .queues
                .get(usize::from(pair))
                .context("it has fewer queues")?;
            Ok(Some(File::from(queue.try_clone()?)))
        }
        Request::Close(zone) => {
            ports.retain(|(of, _), _| *of != zone);
            Ok(None)
        }
        Request::Pin(zone) => {
            pins.entry(zone)
                .or_default()
                .push(sent.context("no pin came with it")?);
            Ok(None)
        }
        Request::Pinned(zone) if pins.contains_key(&zone) => Ok(None),
        Request::Pinned(_) => bail!("it is not pinned"),
        Request::Unpin(zone) => {
            pins.remove(&zone);
            Ok(None)
        }
        Request::End => Ok(None),
    }
}

impl Kept {
    /// Whether the process behind the port has ended.
    fn has_ended(&self) -> bool {
        self._passt.as_ref().is_some_and(Passt::has_ended)
    }
}

fn open(request: PortRequest) -> anyhow::Result<Kept> {
    let (mut passt, mut bridge) = (None, None);
    let queues = match &request.source {
        Source::Tap(name) => {
            if !interface::exists(name) {
                bail!(
                    "there is no network interface {name}: `ip tuntap add dev {name} mode tap vnet_hdr` makes a tap"
                );
            }
            ringnet::tap::open(name, request.pairs)
                .map_err(|error| explain_tap(name, request.pairs, &error))?
        }
        Source::Bridge(on) => {
            let on = Bridge::find(on)?;
            let name = tap_name(&request.zone, request.index);
            let queues = ringnet::tap::open(&name, request.pairs)
                .map_err(|error| explain_tap(&name, request.pairs, &error))?;
            interface::set_mtu(&name, request.mtu)
                .with_context(|| format!("cannot set the MTU of {name}"))?;
            on.add(&name)?;
            bridge = Some(on);
            queues
        }
        Source::VhostUser(path) => server::open(path, request.pairs)?,
        Source::User(forward) => {
            let (process, socket) = Passt::start(request.mtu, forward)?;
            passt = Some(process);
            vec![socket]
        }
    };
    Ok(Kept {
        request,
        queues,
        _passt: passt,
        _bridge: bridge,
    })
}

fn explain_tap(name: &str, pairs: u16, error: &io::Error) -> anyhow::Error {
    let hint = match error.raw_os_error() {
        Some(libc::EBUSY) => "; another program uses it",
        Some(libc::EINVAL) if pairs > 1 => "; it is no tap with several queues (`multi_queue`)",
        Some(libc::EINVAL) => {
            "; it is no tap, or one with `multi_queue`, which needs queue_pairs of 2 or more"
        }
        Some(libc::ENOENT | libc::ENODEV) => "; the kernel has no tap devices (`modprobe tun`)",
        _ => "",
    };
    anyhow::anyhow!("cannot open the tap {name}: {error}{hint}")
}

/// Returns the name of a tap of the daemon's: zone and number, as far as they fit, and what tells long names
/// apart.
fn tap_name(zone: &str, index: usize) -> String {
    let name = format!("rv-{zone}-{index}");
    if name.len() <= ringnet::tap::NAME_MAX {
        return name;
    }
    let hash = zone.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    format!("rv-{hash:08x}-{index}")
}

#[cfg(test)]
mod tests {
    use super::tap_name;

    #[test]
    fn names_of_taps() {
        assert_eq!(tap_name("web", 0), "rv-web-0");
        let long = [
            tap_name("a-zone-with-a-long-name-1", 12),
            tap_name("a-zone-with-a-long-name-2", 12),
        ];
        assert!(long[0] != long[1] && long.iter().all(|name| name.len() <= 15 && name.ends_with("-12")));
    }
}
