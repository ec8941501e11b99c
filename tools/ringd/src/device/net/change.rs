//! [`Change`]: what users may do to a zone's network devices, and what follows when a port fails.

use std::sync::Arc;

use anyhow::{anyhow, bail};
use ringnet::Net;
use serde::{Deserialize, Serialize};

use super::config::{NetConfig, NetLimits, PortConfig, Source};
use super::open;
use super::opener::PortRequest;
use crate::config::error::quoted;
use crate::device::Device;
use crate::device::config::Config;
use crate::device::state::{NetState, PortState};
use crate::device::zone::{Store, ZoneContext};

/// What users may do to a zone's network devices. As JSON it is a request of `ringctl net`, with the zone's
/// name beside it: [`crate::device::api`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", deny_unknown_fields)]
pub enum Change {
    /// Take the link up or down.
    #[serde(rename = "net_link")]
    Link {
        /// Number of the device among the zone's network devices.
        index: usize,
        /// Whether it is up.
        up: bool,
    },
    /// Change the limits; what is not given is no limit.
    #[serde(rename = "net_limit")]
    Limit {
        /// Number of the device.
        index: usize,
        /// The limits.
        limits: NetLimits,
    },
    /// Put something behind a device that nothing is behind.
    #[serde(rename = "net_attach")]
    Attach {
        /// Number of the device.
        index: usize,
        /// What.
        port: PortConfig,
    },
    /// Remove what is behind a device: its link is down.
    #[serde(rename = "net_detach")]
    Detach {
        /// Number of the device.
        index: usize,
    },
}

impl Change {
    const fn index(&self) -> usize {
        match self {
            Self::Link { index, .. }
            | Self::Limit { index, .. }
            | Self::Attach { index, .. }
            | Self::Detach { index } => *index,
        }
    }
}

/// A network device of a zone.
struct Place<'a> {
    zone: &'a ZoneContext,
    index: usize,
    slot: u8,
    config: NetConfig,
}

/// Returns a zone's network devices.
fn places(zone: &ZoneContext) -> impl Iterator<Item = Place<'_>> {
    let nets = (0_u8..)
        .zip(zone.slots())
        .filter_map(|(slot, config)| match config {
            Config::Net(net) => Some((slot, net)),
            Config::Disk(_) | Config::Rng(_) | Config::Console(_) => None,
        });
    nets.enumerate().map(move |(index, (slot, config))| Place {
        zone,
        index,
        slot,
        config,
    })
}

/// Changes a device; returns its slot.
///
/// # Errors
/// There is none, it cannot be changed, or the change cannot be recorded; nothing has changed.
pub fn change(zone: &ZoneContext, store: &mut dyn Store, change: &Change) -> anyhow::Result<u8> {
    let Some(place) = places(zone).nth(change.index()) else {
        let (name, index, count) = (&zone.config.name, change.index(), places(zone).count());
        bail!("zone {name} has no network device eth{index}: it has {count}; `ringctl net list` shows them");
    };
    match change {
        Change::Link { up, .. } => {
            place.record(store, |net| net.link_down = !up)?;
            place.apply(|net| net.set_link(*up))?;
        }
        Change::Limit { limits, .. } => {
            if *limits != NetLimits::default() {
                place.check_ours("limited")?;
            }
            place.record(store, |net| net.limits = *limits)?;
            place.apply(|net| open::limit(net, *limits))?;
        }
        Change::Attach { port, .. } => place.attach(store, port)?,
        Change::Detach { .. } => place.detach(store)?,
    }
    Ok(place.slot)
}

/// Opens the ports anew that have failed: the processes behind them have ended, or their taps were deleted.
pub fn reopen(zone: &ZoneContext) {
    for place in places(zone) {
        let Some(net) = place.device().filter(|net| net.port_has_failed()) else {
            continue;
        };
        let Some(port) = place.port() else {
            continue;
        };
        // Of a passt that has ended the keeper knows; it starts another unless that one ended at once, too.
        let removed = place.take_off(&net).and_then(|()| match port.source {
            Source::User => Ok(()),
            Source::Bridge(_) | Source::Tap(_) | Source::VhostUser(_) => place.close(),
        });
        let reopened = removed.and_then(|()| place.put(&net, &port));
        match reopened {
            Ok(()) => tracing::info!(zone = zone.config.name, net = place.index, "opened a port anew"),
            Err(error) => {
                tracing::error!(zone = zone.config.name, net = place.index, %error, "a port that failed cannot be opened anew");
            }
        }
    }
}

impl Place<'_> {
    /// Returns the device, if it is served.
    fn device(&self) -> Option<Arc<Net>> {
        match self.zone.device(self.slot) {
            Some(Device::Net(net)) => Some(net),
            _ => None,
        }
    }

    /// Refuses what only a device whose packets the daemon transfers can be. `what`: of a sentence.
    fn check_ours(&self, what: &str) -> anyhow::Result<()> {
        if let Source::VhostUser(path) = &self.config.port.source {
            let (zone, index, path) = (&self.zone.config.name, self.index, path.display());
            bail!(
                "eth{index} of zone {zone} cannot be {what}: the vhost-user server at {path} transfers its packets"
            );
        }
        Ok(())
    }

    /// Returns what is to be behind it.
    fn port(&self) -> Option<PortConfig> {
        let state = self.zone.view.state();
        let changed = state.nets.into_iter().find(|net| net.slot == self.slot);
        match changed.and_then(|net| net.port) {
            Some(changed) => changed.config,
            None => Some(self.config.port.clone()),
        }
    }

    fn record(&self, store: &mut dyn Store, change: impl FnOnce(&mut NetState)) -> anyhow::Result<()> {
        self.zone.record(store, |state| {
            let place = state.nets.iter().position(|net| net.slot == self.slot);
            let mut net = place.map_or_else(
                || NetState::new(self.slot, self.config.limits),
                |place| state.nets.remove(place),
            );
            change(&mut net);
            state.nets.push(net);
        })
    }

    fn record_port(
        &self,
        store: &mut dyn Store,
        net: &Net,
        config: Option<PortConfig>,
    ) -> anyhow::Result<()> {
        let offloads = (net.offloads().tcp, net.offloads().udp);
        self.record(store, |state| state.port = Some(PortState { config, offloads }))
    }

    /// Changes the open device, and shows the guest what comes of it.
    fn apply(&self, change: impl FnOnce(&Net)) -> anyhow::Result<()> {
        if let (Some(number), Some(net)) = (self.zone.number, self.device()) {
            change(&net);
            self.zone.io.schedule(number, self.slot);
            self.zone.show_config(self.slot)?;
        }
        Ok(())
    }

    fn served(&self) -> anyhow::Result<Arc<Net>> {
        let (name, index) = (&self.zone.config.name, self.index);
        self.device()
            .ok_or_else(|| anyhow!("eth{index} of zone {name} is not served yet: try again"))
    }

    fn attach(&self, store: &mut dyn Store, port: &PortConfig) -> anyhow::Result<()> {
        let (zone, index) = (&self.zone.config.name, self.index);
        if let Err((key, value, expected)) = port.check() {
            bail!("net[{index}].{key} = {value}: expected {expected}");
        }
        self.check_ours("attached to anything else")?;
        if let Source::VhostUser(path) = &port.source {
            bail!(
                "net[{index}].vhost_user = {}: expected bridge, tap or user: a server is given in a zone file or by --net, before the guest starts",
                quoted(&path.display().to_string())
            );
        }
        let net = self.served()?;
        if let Some(found) = self.port().filter(|_| net.has_port()) {
            let source = found.source;
            bail!(
                "{source} is behind eth{index} of zone {zone}: `ringctl net detach {zone} eth{index}` first"
            );
        }
        self.put(&net, port)?;
        let recorded = self.record_port(store, &net, Some(port.clone()));
        if recorded.is_err() {
            self.remove(&net)?;
        }
        recorded
    }

    fn detach(&self, store: &mut dyn Store) -> anyhow::Result<()> {
        let (zone, index) = (&self.zone.config.name, self.index);
        self.check_ours("detached")?;
        let net = self.served()?;
        if !net.has_port() {
            bail!("nothing is behind eth{index} of zone {zone}: `ringctl net list` shows what is");
        }
        self.record_port(store, &net, None)?;
        self.remove(&net)
    }

    /// Opens a port and puts it behind the device.
    fn put(&self, net: &Net, port: &PortConfig) -> anyhow::Result<()> {
        let (zone, index) = (&self.zone.config, self.index);
        let opener = &*self.zone.environment.ports;
        let request = PortRequest::new(zone, index, port, net.config());
        let opened =
            open::open_port(opener, &request).map_err(|error| open::explain(zone, &request, &error))?;
        if let Err(error) = net.attach(opened) {
            self.close()?;
            return Err(open::explain(zone, &request, &std::io::Error::other(error)));
        }
        self.apply(|_| {})
    }

    /// Removes what is behind the device.
    fn remove(&self, net: &Net) -> anyhow::Result<()> {
        self.take_off(net)?;
        self.close()
    }

    /// Takes the port off the device and waits until none of its queues uses it.
    fn take_off(&self, net: &Net) -> anyhow::Result<()> {
        let port = net.detach();
        if let Some(number) = self.zone.number
            && let Some((_, shown)) = self.zone.io.while_quiesced(number, self.slot, || ())
        {
            shown.map_err(|error| self.zone.config.failed(error))?;
        }
        drop(port);
        Ok(())
    }

    fn close(&self) -> anyhow::Result<()> {
        let closed = self
            .zone
            .environment
            .ports
            .close(&self.zone.config.name, Some(self.index));
        closed.map_err(|error| self.zone.config.failed(error))
    }
}
