//! [`View`]: what client threads read of a zone's devices while the zone's thread changes them.

use std::sync::Arc;

use parking_lot::Mutex;

use super::Device;
use super::backend::QueueSnapshot;
use super::config::Config;
use super::disk::view::DiskView;
use super::report::DeviceStats;
use super::state::State;

/// What client threads read of a zone's devices. Its locks are leaves.
#[derive(Default)]
pub struct View {
    state: Mutex<State>,
    /// Migrations of disks.
    pub disk: DiskView,
}

/// A device of a zone that exists, for reports.
pub struct Observed {
    /// Name of its zone.
    pub zone: String,
    /// EL2's number of the zone.
    pub number: u8,
    /// Its virtio slot.
    pub slot: u8,
    /// What the slot holds.
    pub config: Config,
    /// The open device, if the zone is served.
    pub device: Option<Device>,
    /// Its queues.
    pub queues: Vec<QueueSnapshot>,
    /// The devices of the zone.
    pub view: Arc<View>,
    /// Whether the zone is still being taken over.
    pub recovering: bool,
}

impl View {
    /// Returns the view of a zone with these devices.
    pub fn new(state: State) -> Self {
        Self {
            state: Mutex::new(state),
            disk: DiskView::default(),
        }
    }

    /// Returns what is in the slots.
    pub fn state(&self) -> State {
        self.state.lock().clone()
    }

    /// Replaces what is in the slots.
    pub fn set_state(&self, state: State) {
        *self.state.lock() = state;
    }
}

impl Observed {
    /// Returns the device for reports, without EL2's counters.
    pub fn stats(&self) -> DeviceStats {
        DeviceStats {
            zone: self.zone.clone(),
            slot: self.slot,
            queues: self.queues.iter().map(QueueSnapshot::stats).collect(),
            ..DeviceStats::default()
        }
    }
}
