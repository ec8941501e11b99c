//! [`Backend`] for entropy devices: what EL2 shows of one, and its queue.

use std::sync::Arc;

use ringrng::{QUEUE_SIZE_MAX, Rng, RngQueue};
use ringvirtio::{QueueHandler, QueueSetup, Rate, RateLimits, SetupError};
use ringvisor::abi::command::DeviceSpec;

use super::config::RngConfig;
use crate::device::backend::{Backend, QueueCounters, spec};
use crate::device::config::Config;
use crate::device::inflight;

const _: () = assert!(QUEUE_SIZE_MAX <= inflight::QUEUE_SIZE_MAX);

/// Returns an open device.
pub fn open(config: &RngConfig) -> Arc<Rng> {
    let rng = Rng::new();
    let rate = config.bps.unwrap_or(0);
    rng.throttle.set_limits(RateLimits {
        bytes: Rate {
            rate,
            burst: rate.div_ceil(10),
        },
        ..RateLimits::default()
    });
    rng
}

impl Backend for Arc<Rng> {
    /// One queue, no features of its own, no configuration space.
    fn describe(&self, _config: &Config, queues: u16) -> DeviceSpec {
        spec(
            ringrng::DEVICE_ID,
            ringrng::features(),
            queues,
            QUEUE_SIZE_MAX,
            &[],
        )
    }

    fn queue(
        &self,
        _number: u16,
        setup: QueueSetup,
    ) -> Result<(Box<dyn QueueHandler>, QueueCounters), SetupError> {
        let queue = RngQueue::new(self.clone(), setup)?;
        let counters = QueueCounters::Rng(queue.stats().clone());
        Ok((Box::new(queue), counters))
    }
}
