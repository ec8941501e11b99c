//! [`ControlReceive`], [`ControlTransmit`]: control messages (5.3.6.2), to the driver and from it.

use ringvirtio::{Context, Polls, QueueFault};

use super::{Common, Direction};
use crate::device::MESSAGE_MIN;

/// Messages to the driver.
pub struct ControlReceive;

impl Direction for ControlReceive {
    fn run(&mut self, common: &mut Common, _cx: &mut Context<'_>) -> Result<(), QueueFault> {
        common.queue.stopped = true;
        common.queue.begin_round();
        if common.console.next_message().is_none() {
            return Ok(());
        }
        while let Some(message) = common.console.next_message() {
            let Some(next) = common.next()? else {
                common.starve();
                break;
            };
            if common.readable.total() > 0 {
                return Err(QueueFault::Request(next.head, "bytes to read, for a message"));
            }
            if common.writable.total() < message.bytes().len() as u64 {
                return Err(QueueFault::Request(next.head, "no room for a control message"));
            }
            common.start(next);
            common.writable.write_front(message.bytes());
            common.complete(next, message.bytes().len());
            common.console.sent(&message);
        }
        common.queue.end_round();
        Ok(())
    }
}

/// Messages from the driver. One that is received again, as after a kill, has the same result.
pub struct ControlTransmit;

impl Direction for ControlTransmit {
    fn run(&mut self, common: &mut Common, cx: &mut Context<'_>) -> Result<(), QueueFault> {
        let mut received = false;
        common.queue.begin_round();
        while let Some(next) = common.next()? {
            if common.writable.total() > 0 {
                return Err(QueueFault::Request(next.head, "bytes to write, in a message"));
            }
            let mut message = [0; MESSAGE_MIN];
            if !common.readable.take_front(&mut message) {
                return Err(QueueFault::Request(
                    next.head,
                    "a control message shorter than 8 bytes",
                ));
            }
            common.start(next);
            if common.console.received(message) {
                received = true;
            } else {
                common.stats.messages_ignored.add(1);
            }
            common.complete(next, 0);
        }
        common.queue.end_round();
        if received && let Some((polls, _)) = cx.backend::<Polls>() {
            polls.wake(common.console.group());
        }
        Ok(())
    }
}
