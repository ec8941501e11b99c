//! [`NetReport`]: a network device and its queues, for `ringctl net`.

use ringnet::MacAddress;
use serde::{Deserialize, Serialize};

use super::config::{NetConfig, NetLimits, PortConfig};
use super::open;
use crate::device::backend::Counters;
use crate::device::report::{Counts, counts};
use crate::device::{Config, Device, Observed};

/// A network device and its queues.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetReport {
    /// Its zone.
    pub zone: String,
    /// Its number in the zone: 0 is `eth0`.
    pub index: usize,
    /// Its slot.
    pub slot: u8,
    /// As the zone file describes it.
    pub net: NetConfig,
    /// What is behind it now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<PortConfig>,
    /// Its address.
    pub mac: MacAddress,
    /// Whether the link is up.
    pub link: bool,
    /// Its limits now.
    pub limits: NetLimits,
    /// Counters by queue.
    pub queues: Vec<QueueReport>,
}

/// Counters of a queue since the driver set it up or this daemon took it over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueReport {
    /// Its number in the device: even receive, odd transmit, the last one control.
    pub queue: usize,
    /// Whether the driver uses it now.
    pub active: bool,
    /// Counters by name.
    #[serde(flatten)]
    pub counters: Counts,
}

impl NetReport {
    /// Returns the report of a device, if it is one.
    pub fn new(observed: &Observed, index: usize) -> Option<Self> {
        let Config::Net(config) = &observed.config else {
            return None;
        };
        let device = match &observed.device {
            Some(Device::Net(net)) => Some(net),
            _ => None,
        };
        let state = observed.view.state();
        let state = state.nets.iter().find(|net| net.slot == observed.slot);
        let queues = observed.queues.iter().filter_map(|queue| match &queue.counters {
            Counters::Net(counters) => Some(QueueReport {
                queue: queue.queue,
                active: queue.active,
                counters: counts(counters.all_counters()),
            }),
            _ => None,
        });
        Some(Self {
            zone: observed.zone.clone(),
            index,
            slot: observed.slot,
            mac: config
                .mac
                .unwrap_or_else(|| open::default_mac(&observed.zone, index)),
            net: config.clone(),
            port: match state.and_then(|state| state.port.clone()) {
                Some(changed) => changed.config,
                None => Some(config.port.clone()),
            },
            link: device.is_some_and(|net| net.status() & ringnet::virtio::VIRTIO_NET_S_LINK_UP != 0),
            limits: state.map_or(config.limits, |state| state.limits),
            queues: queues.collect(),
        })
    }

    /// Returns the network devices among those of all zones.
    pub fn all(devices: &[Observed]) -> Vec<Self> {
        let mut reports: Vec<Self> = Vec::new();
        for observed in devices {
            let before = reports
                .iter()
                .filter(|report| report.zone == observed.zone)
                .count();
            reports.extend(Self::new(observed, before));
        }
        reports
    }

    /// Returns the sum of a counter over the queues that receive, or those that transmit.
    pub fn sum(&self, receive: bool, counter: &str) -> u64 {
        let queues = self
            .queues
            .iter()
            .filter(|queue| (queue.queue % 2 == 0) == receive);
        queues.filter_map(|queue| queue.counters.get(counter)).sum()
    }

    /// Returns the packets dropped by queues that receive, or those that transmit, by reason.
    pub fn dropped(&self, receive: bool) -> impl Iterator<Item = (&str, u64)> {
        let reasons = self
            .queues
            .first()
            .map(|queue| queue.counters.keys())
            .into_iter()
            .flatten();
        let reasons = reasons.filter_map(|name| Some((name, name.strip_prefix("dropped_")?)));
        reasons.map(move |(name, reason)| (reason, self.sum(receive, name)))
    }
}
