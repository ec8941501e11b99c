//! The device sides of the virtqueues: packets to the driver, packets from it, commands.

mod control;
mod receive;
mod transmit;
mod window;

use std::sync::Arc;

use ringvirtio::{QueueHandler, QueueSetup, SetupError};

use crate::config::Role;
use crate::device::Net;
use crate::stats::NetStats;
use control::ControlQueue;
use receive::ReceiveQueue;
use transmit::TransmitQueue;

impl Net {
    /// Makes the device side of virtqueue `number`, with its counters.
    ///
    /// # Errors
    /// Invalid addresses, size or log.
    pub fn queue(
        self: &Arc<Self>,
        number: u16,
        setup: QueueSetup,
    ) -> Result<(Box<dyn QueueHandler>, Arc<NetStats>), SetupError> {
        self.negotiated(setup.epoch, setup.features);
        let net = self.clone();
        Ok(match self.config().role(number, setup.features) {
            Role::Receive(pair) => {
                let queue = ReceiveQueue::new(net, pair, setup)?;
                let stats = queue.stats().clone();
                (Box::new(queue), stats)
            }
            Role::Transmit(pair) => {
                let queue = TransmitQueue::new(net, pair, setup)?;
                let stats = queue.stats().clone();
                (Box::new(queue), stats)
            }
            Role::Control => {
                let queue = ControlQueue::new(net, setup)?;
                let stats = queue.stats().clone();
                (Box::new(queue), stats)
            }
        })
    }
}
