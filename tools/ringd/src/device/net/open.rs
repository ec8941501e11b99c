//! Opening a network device: its port is opened and kept by another process ([`PortOpener`]), so that it
//! outlives the daemon.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use ringnet::{MacAddress, Net, Port, SavedState, Stream, Tap};
use ringvhost::device::State;
use ringvirtio::memory::Slots;
use ringvirtio::{Rate, RateLimits};

use super::config::{NetConfig, NetLimits, Source};
use super::opener::{PortOpener, PortRequest};
use super::served;
use crate::config::ZoneConfig;
use crate::config::error::quoted;
use crate::device::inflight;
use crate::device::state::NetState;

/// Opens the device in a slot. `index`: its number among the zone's network devices; `log`: the file that
/// outlives the daemon.
///
/// # Errors
/// Its port cannot be opened.
pub fn open(
    opener: &Arc<dyn PortOpener>,
    zone: &ZoneConfig,
    slot: u8,
    index: usize,
    config: &NetConfig,
    state: Option<&NetState>,
    words: Slots<std::sync::atomic::AtomicU64>,
) -> anyhow::Result<Arc<Net>> {
    let pairs = config.pairs(zone.cpus.count());
    let request = PortRequest {
        zone: zone.name.clone(),
        index,
        source: config.source.clone(),
        mtu: config.mtu,
        pairs,
    };
    let failed = |error: io::Error| {
        let (key, value) = match &config.source {
            Source::Bridge(name) => ("bridge", quoted(name)),
            Source::Tap(name) => ("tap", quoted(name)),
            Source::User(_) => ("user", "true".into()),
            Source::VhostUser(path) => ("vhost_user", quoted(&path.display().to_string())),
        };
        zone.unusable_value(&format!("net[{index}].{key}"), value, error)
    };
    let device = ringnet::NetConfig {
        name: format!("{} net{index}", zone.name),
        mac: config.mac.unwrap_or_else(|| default_mac(&zone.name, index)),
        mtu: config.mtu,
        pairs,
    };
    let words = Arc::new(words);
    let saved = SavedState::new(words.clone(), inflight::net_words(slot));
    let (net, port) = if let Source::VhostUser(_) = request.source {
        let state = State::new(words, inflight::server_words(slot));
        let net = served::open(opener, request, device, state, saved);
        (net.map_err(failed)?, None)
    } else {
        let port = port(&**opener, &request).map_err(failed)?;
        (Net::new(device, port.offloads(), Some(saved)), Some(port))
    };
    limit(&net, state.map_or(config.limits, |state| state.limits));
    if state.is_some_and(|state| state.link_down) {
        net.set_link(false);
    }
    if let Some(port) = port {
        net.attach(port)
            .map_err(|error| failed(io::Error::other(error)))?;
    }
    Ok(net)
}

fn port(opener: &dyn PortOpener, request: &PortRequest) -> io::Result<Arc<dyn Port>> {
    let descriptors: io::Result<Vec<OwnedFd>> = (0..request.pairs)
        .map(|pair| opener.open(request, pair))
        .collect();
    let mut descriptors = descriptors?;
    Ok(match request.source {
        Source::Bridge(_) | Source::Tap(_) => Arc::new(Tap::new(descriptors)?),
        Source::User(_) | Source::VhostUser(_) => {
            let socket = descriptors.pop().ok_or(io::ErrorKind::NotFound)?;
            Arc::new(Stream::new(socket)?)
        }
    })
}

/// Sets the limits of both directions. A tenth of a second's packets may come at once.
pub fn limit(net: &Net, limits: NetLimits) {
    let rate = |rate: Option<u64>| {
        let rate = rate.unwrap_or(0);
        Rate {
            rate,
            burst: rate.div_ceil(10),
        }
    };
    let limits = RateLimits {
        iops: rate(limits.pps),
        bytes: rate(limits.rate.map(|bits| bits / 8)),
    };
    net.receive_throttle().set_limits(limits);
    net.transmit_throttle().set_limits(limits);
}

/// Returns the address of a device that was given none: always the same on this machine.
pub fn default_mac(zone: &str, index: usize) -> MacAddress {
    let machine = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    MacAddress::derived(&[machine.trim(), zone, &index.to_string()])
}
