//! [`Transmit`]: output: each chain is appended to the port's ring.

use std::collections::VecDeque;
use std::sync::Arc;

use ringvirtio::{Context, QueueFault};

use super::{Common, Direction, STEP};
use crate::port::Port;

/// Most bytes that are appended in one service: as many as readers can get before they are overwritten.
const ROUND: u64 = 64 << 10;

/// Output of a port.
pub struct Transmit(Arc<Port>);

impl Transmit {
    /// Returns the output of a port; `started`: heads that an earlier daemon had started.
    pub fn new(port: Arc<Port>, started: &VecDeque<u16>) -> Self {
        let started: Vec<u16> = started.iter().copied().collect();
        port.recover_output(&started);
        Self(port)
    }

    /// Appends chains until there are no more, or the round's bytes are. Returns how many bytes.
    fn append_all(&self, common: &mut Common) -> Result<u64, QueueFault> {
        let mut appended = 0;
        common.queue.begin_round();
        while let Some(next) = common.next()? {
            // 5.3.6.2: the driver must not put a device-writable buffer in a transmit queue.
            if common.writable.total() > 0 {
                return Err(QueueFault::Request(next.head, "bytes to write, in output"));
            }
            common.start(next);
            let done = self.0.begin_chain(next.head);
            common.readable.advance(done);
            while common.readable.total() > 0 {
                let len = common.readable.total().min(STEP as u64).min(ROUND - appended);
                if len == 0 {
                    common.woken = true;
                    return Ok(appended);
                }
                let mut bytes = [0; STEP];
                let bytes = bytes.get_mut(..len as usize).unwrap_or_default();
                if !common.readable.take_front(bytes) {
                    break;
                }
                self.0.append(bytes);
                appended += len;
                common.stats.bytes.add(len);
            }
            common.complete(next, 0);
            self.0.end_chain();
        }
        common.queue.end_round();
        Ok(appended)
    }
}

impl Direction for Transmit {
    fn run(&mut self, common: &mut Common, _cx: &mut Context<'_>) -> Result<(), QueueFault> {
        let before = common.stats.bytes.get();
        let result = self.append_all(common);
        if common.stats.bytes.get() != before {
            self.0.notify_output();
        }
        result.map(drop)
    }
}
