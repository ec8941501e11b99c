//! Devices of zones: what is described, opened, served, changed and closed, whatever its kind.
//!
//! Zones, records, control protocol, statistics and the reactor's side know devices by what is in this
//! folder; what is special to a kind is in a folder of its own: [`disk`], [`rng`], [`net`], [`console`].
//!
//! | file | has |
//! |---|---|
//! | [`config`] | [`Configs`] of a zone file, [`Config`] of one virtio slot |
//! | [`options`] | the same on the command line |
//! | [`backend`] | [`Device`], [`Backend`]: an open device as the reactor's side uses it |
//! | [`state`] | [`State`]: the devices' part of a zone's record |
//! | [`inflight`] | the file that outlives the daemon: in-flight logs, a word for each slot |
//! | [`view`] | [`View`]: what client threads read, [`Observed`] devices for reports |
//! | [`context`] | what devices get of their zone |
//! | [`zone`] | the zone as changes of devices need it, and its record |
//! | [`devices`] | [`Devices`] of a zone, on the zone's thread: open, take over, change, close |
//! | [`api`] | requests of `ringctl` and replies |
//!
//! Adding a kind takes a folder and a line in each `enum` and `struct` here that lists the kinds: [`Device`],
//! [`Configs`], [`Config`], [`State`], [`Change`], [`QueueCounters`], [`report`], [`api`].

pub mod api;
pub mod backend;
pub mod config;
pub mod console;
pub mod context;
pub mod devices;
pub mod disk;
pub mod inflight;
pub mod net;
pub mod options;
pub mod report;
pub mod rng;
pub mod state;
pub mod view;
pub mod zone;

use serde::{Deserialize, Serialize};

pub use backend::{Backend, Device, QueueCounters, QueueSnapshot};
pub use config::{Config, Configs};
pub use context::Environment;
pub use devices::Devices;
pub use options::Options;
pub use state::State;
pub use view::{Observed, View};

/// A change of a device of a zone that exists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Change {
    /// Of a drive or its disk.
    Disk(disk::change::Change),
    /// Of a network device.
    Net(net::change::Change),
}

impl Change {
    /// Whether nothing is left to report once it is made.
    pub const fn removes(&self) -> bool {
        matches!(self, Self::Disk(disk::change::Change::Detach { .. }))
    }
}
