//! [`BlockQueue`] as a reactor drives it, with the engines of a [`BlockBackend`].

use std::io;

use ringvirtio::{Context, QueueHandler, VirtQueue};

use super::block_queue::BlockQueue;
use crate::backend::BlockBackend;

impl QueueHandler for BlockQueue {
    fn queue(&self) -> &VirtQueue {
        &self.queue
    }

    fn queue_mut(&mut self) -> &mut VirtQueue {
        &mut self.queue
    }

    fn attach(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match cx.make_backend::<BlockBackend>() {
            Some((backend, waiter)) => backend.attach(waiter, &self.disk, self.queue.ram()),
            None => Ok(()),
        }
    }

    fn detach(&mut self, cx: &mut Context<'_>) {
        if let Some((backend, waiter)) = cx.backend::<BlockBackend>() {
            backend.detach(waiter, &self.disk, self.queue.ram());
        }
    }

    fn service(&mut self, cx: &mut Context<'_>) {
        if let Some((backend, waiter)) = cx.backend::<BlockBackend>()
            && let Some(mut engine) = backend.engine(waiter, &self.disk, self.queue.ram())
        {
            self.service(engine.get());
        }
    }

    fn complete(&mut self, tag: u64, result: i32, cx: &mut Context<'_>) {
        if let Some((backend, waiter)) = cx.backend::<BlockBackend>()
            && let Some(mut engine) = backend.engine(waiter, &self.disk, self.queue.ram())
        {
            self.complete(tag, result, engine.get());
        }
    }

    fn abandon(&mut self, cx: &mut Context<'_>) -> bool {
        let Some((backend, _)) = cx.backend::<BlockBackend>() else {
            return false;
        };
        let (ram, in_flight) = (self.queue.ram(), self.queue.in_flight());
        let count = backend.abandon(&self.disk, ram, self.queue.tag_base(), in_flight);
        self.queue.abandon(count);
        count > 0
    }

    fn retry(&mut self) {
        Self::retry(self);
    }
}
