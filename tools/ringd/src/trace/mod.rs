//! The path of requests through guest exit, EL2, ring, daemon, device and interrupt, on one clock.
//!
//! [`record`] is the daemon's side: it switches EL2's and its own recording on and sends what both wrote. The
//! command's side makes [`Event`]s of it, [`join`] finds the requests in them, [`chrome`] writes the file
//! that ui.perfetto.dev and chrome://tracing open, [`summary`] shows where the time goes.

pub mod chrome;
pub mod join;
pub mod record;
pub mod summary;

use ringvirtio::trace::Kind as DaemonKind;
use ringvisor::abi::counters::Exit;
use ringvisor::abi::machine::{SPI_BASE, VIRTIO_SPI};
use ringvisor::abi::trace::{Kind, Record};
use ringvisor::abi::{MAX_CPUS, MAX_SLOTS};
use serde::{Deserialize, Serialize};

/// The header of the records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceStart {
    /// Frequency of all stamps in Hz.
    pub frequency: u64,
    /// CPUs.
    pub cpus: usize,
}

/// Some records, in no order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// Source, stamp, word; the source is a CPU's number, or [`MAX_CPUS`] more than a thread's.
    pub records: Vec<(usize, u64, u64)>,
    /// Records that were overwritten before they could be read.
    pub lost: u64,
    /// Names of the threads so far.
    pub threads: Vec<String>,
    /// The last chunk.
    pub end: bool,
}

/// The source of a record.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Source {
    /// EL2 on this CPU.
    Cpu(usize),
    /// A thread of the daemon.
    Thread(usize),
}

/// What a record is about.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Step {
    /// A stay at EL2 for this reason, of so many ticks.
    Exit(Exit, u32),
    /// The guest's store to QueueNotify trapped.
    Notify,
    /// An event went onto the zone's ring.
    Ring,
    /// EL2 raised the control device's interrupt.
    EventInterrupt,
    /// The daemon's store to the used-buffer doorbell trapped.
    Doorbell,
    /// The interrupt with this number became pending in a list register.
    Inject(u32),
    /// The guest's store to InterruptACK trapped.
    Acknowledge,
    /// A step of the daemon.
    Daemon(DaemonKind),
}

/// A decoded record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Event {
    /// Its stamp.
    pub stamp: u64,
    /// Its source.
    pub source: Source,
    /// What it is about.
    pub step: Step,
    /// Zone.
    pub zone: u8,
    /// virtio slot.
    pub slot: u8,
    /// Queue.
    pub queue: u8,
    /// Descriptor head, for steps of the daemon that are about a request.
    pub value: u32,
}

impl Event {
    /// Decodes a record of a [`Chunk`]; returns `None` if it is not understood.
    pub fn parse((who, stamp, word): (usize, u64, u64)) -> Option<Self> {
        let [kind, zone, slot, queue, v0, v1, v2, v3] = word.to_le_bytes();
        let value = u32::from_le_bytes([v0, v1, v2, v3]);
        let event = |source, step, slot| Self {
            stamp,
            source,
            step,
            zone,
            slot,
            queue,
            value,
        };
        if let Some(thread) = who.checked_sub(MAX_CPUS) {
            let step = Step::Daemon(DaemonKind::try_from(kind).ok()?);
            return Some(event(Source::Thread(thread), step, slot));
        }
        let record = Record::parse(stamp, word)?;
        let (step, slot) = match record.kind {
            Kind::Exit => (Step::Exit(Exit::from_number(slot.into())?, value), slot),
            Kind::Notify => (Step::Notify, slot),
            Kind::Ring => (Step::Ring, slot),
            Kind::EventInterrupt => (Step::EventInterrupt, slot),
            Kind::Doorbell => (Step::Doorbell, slot),
            Kind::Inject => {
                let slot = value
                    .checked_sub(SPI_BASE + VIRTIO_SPI)
                    .filter(|slot| *slot < MAX_SLOTS as u32);
                // A slot that no device has: the interrupt is not a device's.
                let slot = slot.and_then(|slot| u8::try_from(slot).ok()).unwrap_or(u8::MAX);
                (Step::Inject(value), slot)
            }
            Kind::Acknowledge => (Step::Acknowledge, slot),
        };
        Some(event(Source::Cpu(who), step, slot))
    }
}

/// All that was recorded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// Frequency of the stamps in Hz.
    pub frequency: u64,
    /// CPUs.
    pub cpus: usize,
    /// Names of the daemon's threads.
    pub threads: Vec<String>,
    /// By time.
    pub events: Vec<Event>,
    /// Records that were overwritten unread.
    pub lost: u64,
}

impl Trace {
    /// Adds records.
    pub fn add(&mut self, chunk: Chunk) {
        self.events
            .extend(chunk.records.into_iter().filter_map(Event::parse));
        self.lost = self.lost.saturating_add(chunk.lost);
        self.threads = chunk.threads;
    }

    /// Sorts by time. Records of one moment keep their writer's order.
    pub fn sort(&mut self) {
        self.events.sort_by_key(|event| event.stamp);
    }
}
