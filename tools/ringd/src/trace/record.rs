//! [`Recorder`]: the one recording there may be, switched off when it is dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;
use ringvirtio::trace::Ring;
use ringvisor::abi::MAX_CPUS;
use ringvisor::abi::trace::ALL;

use super::{Chunk, TraceStart};
use crate::hv::Hypervisor;

static BUSY: AtomicBool = AtomicBool::new(false);

/// Holds the right to record.
struct Claim;

impl Claim {
    fn new() -> Option<Self> {
        (!BUSY.swap(true, Ordering::AcqRel)).then_some(Self)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        BUSY.store(false, Ordering::Release);
    }
}

struct Thread {
    ring: Arc<Ring>,
    next: u64,
}

/// While it lives, EL2 and the daemon record.
pub struct Recorder {
    hv: Arc<dyn Hypervisor>,
    /// Next record by CPU.
    cpus: Vec<u64>,
    capacity: u64,
    frequency: u64,
    threads: Vec<Thread>,
    _claim: Claim,
}

impl Recorder {
    /// Begins to record.
    ///
    /// # Errors
    /// Another client records, or EL2 does not.
    pub fn start(hv: Arc<dyn Hypervisor>) -> anyhow::Result<Self> {
        let claim =
            Claim::new().context("a trace is being recorded already; there can be only one at a time")?;
        let info = hv.info();
        let count = usize::try_from(info.cpu_count).unwrap_or(0).min(MAX_CPUS);
        let heads = |hv: &dyn Hypervisor| (0..count).map(|cpu| hv.trace_head(cpu)).collect();
        let threads = ringvirtio::trace::rings().into_iter().map(|ring| Thread {
            next: ring.head(),
            ring,
        });
        let recorder = Self {
            cpus: heads(&*hv),
            threads: threads.collect(),
            capacity: info.trace_records.into(),
            frequency: ringvirtio::trace::frequency(),
            hv,
            _claim: claim,
        };
        (&*recorder.hv as &dyn Hypervisor).trace(ALL)?;
        ringvirtio::trace::set_on(true);
        Ok(recorder)
    }

    /// Returns the header of the records.
    pub fn about(&self) -> TraceStart {
        TraceStart {
            frequency: self.frequency,
            cpus: self.cpus.len(),
        }
    }

    /// Returns what was recorded since the last call.
    pub fn take(&mut self) -> Chunk {
        let mut chunk = Chunk::default();
        let mut raw = Vec::new();
        let hv: &dyn Hypervisor = &*self.hv;
        for (cpu, next) in self.cpus.iter_mut().enumerate() {
            let (now, lost) = hv.read_trace(cpu, self.capacity, *next, &mut raw);
            *next = now;
            chunk.lost += lost;
            let records = raw.drain(..);
            chunk
                .records
                .extend(records.map(|(stamp, word)| (cpu, stamp, word)));
        }
        for ring in ringvirtio::trace::rings() {
            if !self.threads.iter().any(|known| Arc::ptr_eq(&known.ring, &ring)) {
                self.threads.push(Thread { ring, next: 0 });
            }
        }
        for (number, thread) in self.threads.iter_mut().enumerate() {
            let progress = thread.ring.read(thread.next, &mut raw);
            thread.next = progress.next;
            chunk.lost += progress.lost;
            let records = raw.drain(..);
            let who = MAX_CPUS + number;
            chunk
                .records
                .extend(records.map(|(stamp, word)| (who, stamp, word)));
        }
        chunk.threads = self
            .threads
            .iter()
            .map(|thread| thread.ring.name().to_owned())
            .collect();
        chunk
    }

    /// Stops recording; [`Self::take`] returns the rest.
    pub fn stop(&self) {
        ringvirtio::trace::set_on(false);
        if let Err(error) = (&*self.hv as &dyn Hypervisor).trace(0) {
            tracing::warn!(%error, "cannot stop recording at EL2");
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.stop();
    }
}
