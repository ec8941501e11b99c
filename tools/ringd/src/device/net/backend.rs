//! [`Backend`] for network devices: what EL2 shows of one, and its queues.

use std::sync::Arc;

use ringnet::config::CHANGING;
use ringnet::{Net, QUEUE_SIZE_MAX};
use ringvirtio::{Callback, QueueHandler, QueueSetup, SetupError};
use ringvisor::abi::command::DeviceSpec;

use crate::device::backend::{Backend, QueueCounters, spec};
use crate::device::config::Config;
use crate::device::inflight;
use crate::device::zone::ZoneContext;

const _: () = assert!(QUEUE_SIZE_MAX <= inflight::QUEUE_SIZE_MAX);

impl Backend for Arc<Net> {
    fn describe(&self, _config: &Config, queues: u16) -> DeviceSpec {
        let space = self.space();
        spec(
            ringnet::DEVICE_ID,
            self.features(),
            queues,
            QUEUE_SIZE_MAX,
            &space,
        )
    }

    fn live_config(&self) -> Option<(u16, Vec<u8>)> {
        let space = self.space();
        Some((0, space.get(..CHANGING)?.into()))
    }

    fn queue(
        &self,
        number: u16,
        setup: QueueSetup,
    ) -> Result<(Box<dyn QueueHandler>, QueueCounters), SetupError> {
        let (queue, counters) = Net::queue(self, number, setup)?;
        Ok((queue, QueueCounters::Net(counters)))
    }

    fn release(&self, queue: Option<u16>, then: Callback) {
        Net::release(self, queue, then);
    }
}

/// Has the guest shown address and status of the link when the device changes them by itself, and the zone's
/// thread woken when its port fails.
pub fn watch(zone: &ZoneContext, slot: u8, net: &Net) {
    if let Some(wake) = zone.wake.clone() {
        net.on_port_failure(Box::new(move || wake()));
    }
    let Some(number) = zone.number else {
        return;
    };
    let io = Arc::downgrade(&zone.io);
    net.on_status_change(Box::new(move || {
        if let Some(io) = io.upgrade()
            && let Err(error) = io.show_config(number, slot)
        {
            tracing::error!(zone = number, slot, %error, "cannot show a device's address and link");
        }
    }));
}
