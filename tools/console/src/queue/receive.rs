//! [`Receive`]: input: what waits in the port's ring is copied into the driver's buffers.
//!
//! Without input no buffer is popped, and the driver need not notify of buffers.

use std::collections::VecDeque;
use std::sync::Arc;

use ringvirtio::{Context, QueueFault};

use super::{Common, Direction, STEP};
use crate::port::Port;

/// Input of a port.
pub struct Receive(Arc<Port>);

impl Receive {
    /// Returns the input of a port; `started`: heads that an earlier daemon had started.
    pub fn new(port: Arc<Port>, started: &VecDeque<u16>) -> Self {
        let started: Vec<u16> = started.iter().copied().collect();
        port.recover_input(&started);
        Self(port)
    }
}

impl Direction for Receive {
    fn run(&mut self, common: &mut Common, _cx: &mut Context<'_>) -> Result<(), QueueFault> {
        common.queue.stopped = true;
        common.queue.begin_round();
        if !self.0.has_input() {
            return Ok(());
        }
        while self.0.has_input() {
            let Some(next) = common.next()? else {
                common.starve();
                break;
            };
            // 5.3.6.2: the driver must not put a device-readable buffer in a receive queue.
            if common.readable.total() > 0 {
                return Err(QueueFault::Request(next.head, "bytes to read, for input"));
            }
            let room = common.writable.total().min(STEP as u64) as usize;
            if room == 0 {
                return Err(QueueFault::Request(next.head, "no room for a byte of input"));
            }
            common.start(next);
            let mut bytes = [0; STEP];
            let len = self.0.peek_input(bytes.get_mut(..room).unwrap_or_default());
            common.writable.write_front(bytes.get(..len).unwrap_or_default());
            self.0.begin_input(next.head, len);
            common.complete(next, len);
            self.0.end_input();
            common.stats.bytes.add(len as u64);
        }
        common.queue.end_round();
        Ok(())
    }
}
