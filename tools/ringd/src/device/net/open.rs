//! Opening a network device: its port is opened and kept by another process ([`PortOpener`]), so that it
//! outlives the daemon.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use ringnet::{MacAddress, Net, Offloads, Port, SavedState, Stream, Tap};
use ringvhost::device::State;
use ringvirtio::memory::Slots;
use ringvirtio::{Rate, RateLimits};

use super::config::{NetConfig, NetLimits, PortConfig, Source};
use super::opener::{PortError, PortOpener, PortRequest};
use super::served;
use crate::config::ZoneConfig;
use crate::device::inflight;
use crate::device::state::NetState;

impl PortRequest {
    /// Returns the request for what is behind a device of a zone.
    pub fn new(zone: &ZoneConfig, index: usize, port: &PortConfig, device: &ringnet::NetConfig) -> Self {
        Self {
            zone: zone.name.clone(),
            index,
            port: port.clone(),
            mac: device.mac,
            mtu: device.mtu,
            pairs: device.pairs,
        }
    }
}

/// Opens the device in a slot. `index`: its number among the zone's network devices; `words`: the file that
/// outlives the daemon; `takeover`: an earlier daemon has served it.
///
/// # Errors
/// Its port cannot be opened; after a take-over that is none, and the link is down.
#[expect(
    clippy::too_many_arguments,
    reason = "each is another part of what a device is made of"
)]
pub fn open(
    opener: &Arc<dyn PortOpener>,
    zone: &ZoneConfig,
    slot: u8,
    index: usize,
    config: &NetConfig,
    state: Option<&NetState>,
    words: Slots<std::sync::atomic::AtomicU64>,
    takeover: bool,
) -> anyhow::Result<Arc<Net>> {
    let device = ringnet::NetConfig {
        name: format!("{} net{index}", zone.name),
        mac: config.mac.unwrap_or_else(|| default_mac(&zone.name, index)),
        mtu: config.mtu,
        pairs: config.pairs(zone.cpus.count()),
    };
    let words = Arc::new(words);
    let saved = SavedState::new(words.clone(), inflight::net_words(slot));
    let (net, port) = if let Source::VhostUser(_) = config.port.source {
        let request = PortRequest::new(zone, index, &config.port, &device);
        let state = State::new(words, inflight::server_words(slot));
        let net = served::open(opener, request.clone(), device, state, saved)
            .map_err(|error| explain(zone, &request, &error))?;
        (net, None)
    } else {
        let changed = state.and_then(|state| state.port.as_ref());
        let port = match changed {
            None => Some(&config.port),
            Some(changed) => changed.config.as_ref(),
        };
        let request = port.map(|port| PortRequest::new(zone, index, port, &device));
        let opened = request.map(|request| {
            let port = open_port(&**opener, &request);
            port.map_err(|error| explain(zone, &request, &error))
                .map(|port| (request, port))
        });
        let opened = match opened.transpose() {
            // The guest is in the middle of its work: it goes on without this link.
            Err(error) if takeover => {
                tracing::error!(%error, "a network device that was taken over has no link");
                None
            }
            other => other?,
        };
        let offered = match (changed, &opened) {
            (Some(changed), _) => Offloads {
                tcp: changed.offloads.0,
                udp: changed.offloads.1,
            },
            (None, Some((_, port))) => port.offloads(),
            (None, None) => Offloads {
                tcp: config.port.source != Source::User,
                udp: false,
            },
        };
        (Net::new(device, offered, Some(saved)), opened)
    };
    limit(&net, state.map_or(config.limits, |state| state.limits));
    if state.is_some_and(|state| state.link_down) {
        net.set_link(false);
    }
    if let Some((request, port)) = port
        && let Err(error) = net.attach(port)
    {
        let error = explain(zone, &request, &io::Error::other(error));
        if !takeover {
            return Err(error);
        }
        tracing::error!(%error, "a network device that was taken over has no link");
    }
    Ok(net)
}

/// Returns the error that a port cannot be opened, with the key and value of the zone file.
pub fn explain(zone: &ZoneConfig, request: &PortRequest, error: &io::Error) -> anyhow::Error {
    let named = PortError::of(error).and_then(|error| error.key.clone());
    let (key, value) = named.unwrap_or_else(|| {
        let (key, value) = request.port.source.key();
        (key.into(), value)
    });
    zone.unusable_value(&format!("net[{}].{key}", request.index), value, error)
}

/// Opens a port, or returns the one that is kept.
///
/// # Errors
/// It cannot be opened.
pub fn open_port(opener: &dyn PortOpener, request: &PortRequest) -> io::Result<Arc<dyn Port>> {
    let descriptors: io::Result<Vec<OwnedFd>> = (0..request.pairs)
        .map(|pair| opener.open(request, pair))
        .collect();
    let mut descriptors = descriptors?;
    Ok(match request.port.source {
        Source::Bridge(_) | Source::Tap(_) => Arc::new(Tap::new(descriptors)?),
        Source::User => {
            let socket = descriptors.pop().ok_or(io::ErrorKind::NotFound)?;
            Arc::new(Stream::new(socket)?)
        }
        // It transfers packets itself: `served`.
        Source::VhostUser(_) => return Err(io::ErrorKind::Unsupported.into()),
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
