//! [`Change`]: what users may do to a zone's network devices.

use anyhow::bail;
use serde::{Deserialize, Serialize};

use super::config::{NetLimits, Source};
use super::open;
use crate::device::Device;
use crate::device::config::Config;
use crate::device::state::NetState;
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
}

impl Change {
    const fn index(&self) -> usize {
        match self {
            Self::Link { index, .. } | Self::Limit { index, .. } => *index,
        }
    }
}

/// Changes a device; returns its slot.
///
/// # Errors
/// There is none, or the change cannot be recorded; nothing has changed.
pub fn change(zone: &ZoneContext, store: &mut dyn Store, change: &Change) -> anyhow::Result<u8> {
    let nets = || {
        (0_u8..)
            .zip(zone.slots())
            .filter_map(|(slot, config)| match config {
                Config::Net(net) => Some((slot, net)),
                Config::Disk(_) | Config::Rng(_) | Config::Console(_) => None,
            })
    };
    let Some((slot, config)) = nets().nth(change.index()) else {
        let (name, index, count) = (&zone.config.name, change.index(), nets().count());
        bail!("zone {name} has no network device eth{index}: it has {count}; `ringctl net list` shows them");
    };
    if let (Change::Limit { limits, .. }, Source::VhostUser(path)) = (change, &config.source)
        && *limits != NetLimits::default()
    {
        bail!(
            "eth{} of zone {} cannot be limited: the vhost-user server at {} transfers its packets",
            change.index(),
            zone.config.name,
            path.display()
        );
    }
    zone.record(store, |state| {
        let place = state.nets.iter().position(|net| net.slot == slot);
        let mut net = place.map_or_else(
            || NetState::new(slot, config.limits),
            |place| state.nets.remove(place),
        );
        match change {
            Change::Link { up, .. } => net.link_down = !up,
            Change::Limit { limits, .. } => net.limits = *limits,
        }
        state.nets.push(net);
    })?;
    if let (Some(number), Some(Device::Net(net))) = (zone.number, zone.device(slot)) {
        match change {
            Change::Link { up, .. } => net.set_link(*up),
            Change::Limit { limits, .. } => open::limit(&net, *limits),
        }
        zone.io.schedule(number, slot);
        zone.show_config(slot)?;
    }
    Ok(slot)
}
