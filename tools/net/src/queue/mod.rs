//! The device sides of the virtqueues: packets to the driver, packets from it, commands.

mod control;
mod net_queue;
mod receive;
mod transmit;
mod window;

use std::sync::Arc;

use ringvirtio::{QueueSetup, SetupError};

use crate::config::Role;
use crate::device::{MadeQueue, Net};
use control::ControlQueue;
use net_queue::NetQueue;
use receive::ReceiveQueue;
use transmit::TransmitQueue;

impl Net {
    /// Makes the device side of virtqueue `number`, with its counters.
    ///
    /// # Errors
    /// Invalid addresses, size or log.
    pub fn queue(self: &Arc<Self>, number: u16, setup: QueueSetup) -> MadeQueue {
        self.negotiated(setup.epoch, setup.features);
        let net = self.clone();
        let role = self.config().role(number, setup.features);
        if let (Some(server), Role::Receive(_) | Role::Transmit(_)) = (self.server(), role) {
            return server.queue(number, setup);
        }
        match role {
            Role::Receive(pair) => boxed(ReceiveQueue::new(net, pair, setup)),
            Role::Transmit(pair) => boxed(TransmitQueue::new(net, pair, setup)),
            Role::Control => boxed(ControlQueue::new(net, 0, setup)),
        }
    }
}

fn boxed<R: net_queue::Role + 'static>(made: Result<NetQueue<R>, SetupError>) -> MadeQueue {
    let queue = made?;
    let stats = queue.stats().clone();
    Ok((Box::new(queue), stats))
}
