//! [`BlockQueue`]: its parts, its set-up, and how a reactor drives it with the engines of a
//! [`BlockBackend`].

use std::sync::Arc;
use std::{io, mem};

use ringvirtio::queue::MAX_BATCH;
use ringvirtio::virtio::feature;
use ringvirtio::{Context, QueueHandler, QueueSetup, SetupError, VirtQueue};

use super::batch::{Batch, MergePool};
use super::slot::Slots;
use super::sync::{SyncState, WriteCache};
use crate::backend::BlockBackend;
use crate::disk::Disk;
use crate::request::Negotiated;
use crate::stats::BlockStats;
use crate::virtio::{
    VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_WRITE_ZEROES,
};

/// A virtqueue of a block device.
pub struct BlockQueue {
    /// The virtqueue.
    pub queue: VirtQueue,
    pub(super) disk: Arc<Disk>,
    pub(super) slots: Slots,
    pub(super) stats: Arc<BlockStats>,
    pub(super) negotiated: Negotiated,
    pub(super) cache: WriteCache,
    /// Transfers popped and not submitted: empty between calls.
    pub(super) batch: Batch,
    pub(super) merge: MergePool,
    /// Requests that failed and wait for a retry; while there are any, the queue is stopped. They stay in the
    /// in-flight log.
    pub(super) held: Vec<u16>,
    /// The held requests are to be retried at the next service.
    pub(super) retry_requested: bool,
    pub(super) sync: SyncState,
}

impl BlockQueue {
    /// Makes the queue of a disk. What the log says is in flight is run again at the first [`Self::service`].
    ///
    /// # Errors
    /// Addresses, size or log are bad.
    pub fn new(disk: Arc<Disk>, setup: QueueSetup) -> Result<Self, SetupError> {
        let has = |number| setup.features & feature(number) != 0;
        let cache = WriteCache::new(has(VIRTIO_BLK_F_FLUSH), has(VIRTIO_BLK_F_CONFIG_WCE), &disk);
        let negotiated = Negotiated {
            discard: has(VIRTIO_BLK_F_DISCARD),
            zeroes: has(VIRTIO_BLK_F_WRITE_ZEROES),
        };
        let mut queue = VirtQueue::new(setup)?;
        queue.name = disk.config().path.display().to_string();
        queue.stopped = disk.is_closed();
        if queue.is_lost() {
            disk.set_loss_unreported(true);
        }
        if cache.is_chosen() && !cache.is_writeback(&disk) {
            // The driver may have turned the cache off before the last daemon heard of it: nothing says that
            // what completed is durable.
            queue.restart_completed();
        }
        let size = usize::from(queue.size());
        Ok(Self {
            slots: Slots::new(size, queue.ram()),
            stats: Arc::new(BlockStats {
                queue: queue.stats().clone(),
                ..BlockStats::default()
            }),
            queue,
            disk,
            negotiated,
            cache,
            batch: Batch::new(size.min(MAX_BATCH.into())),
            merge: MergePool::default(),
            held: Vec::with_capacity(size),
            retry_requested: false,
            sync: SyncState::new(size),
        })
    }

    /// Returns the disk.
    pub fn disk(&self) -> &Arc<Disk> {
        &self.disk
    }

    /// Returns the counters, which stay readable after the queue is gone.
    pub fn stats(&self) -> &Arc<BlockStats> {
        &self.stats
    }
}

impl Drop for BlockQueue {
    fn drop(&mut self) {
        if self.queue.in_flight() > 0 {
            // An engine may still write through these: a leak is better than writes to memory that is in use
            // again.
            mem::forget(mem::take(&mut self.slots.list));
            mem::forget(mem::take(&mut self.merge));
            mem::forget(self.disk.clone());
        }
    }
}

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
        let count = backend.abandon(&self.disk, ram, self.queue.tag_base, in_flight);
        self.queue.abandon(count);
        count > 0
    }

    fn retry(&mut self) {
        self.retry_requested = true;
    }
}
