//! The contract between EL2 and user space in root: what lies where, which store means what.
//!
//! Three parts:
//! - [`info`], [`doorbell`], [`counters`], [`trace`]: BAR 0 of the control device. Root reads it without an exit; a store
//!   to the doorbell page traps and is the hypercall.
//! - [`shared`]: one 2 MiB huge page of root's own memory that the daemon donates with `ATTACH`. Ordinary
//!   cacheable memory on both sides: the command slot, and per zone the event ring and the console buffers.
//! - [`command`]: the operations that the command doorbell executes.
//!
//! EL2 trusts no byte that root can write: a command is copied once, then checked.
//! All integers are little-endian. Version changes whenever a layout or a meaning does.

pub mod command;
pub mod counters;
pub mod doorbell;
pub mod info;
pub mod machine;
pub mod shared;
pub mod trace;

/// Version of everything in this module; EL2 and daemon must agree exactly.
pub const ABI_VERSION: u32 = 3;

/// First bytes of the information page and of the shared page: "RINGVISR".
pub const MAGIC: u64 = u64::from_le_bytes(*b"RINGVISR");

/// PCI vendor of the control device (pid.codes, for open projects).
pub const PCI_VENDOR: u16 = 0x1209;
/// PCI device number of the control device.
pub const PCI_DEVICE: u16 = 0x7276;
/// Bytes in BAR 0: the information page, the doorbell page, counters and trace buffers.
pub const BAR_SIZE: u64 = 512 << 10;

/// Number of the root zone.
pub const ROOT_ZONE: u8 = 0;
/// Zones including root; zone numbers are below this.
pub const MAX_ZONES: usize = 16;
/// Physical CPUs that EL2 keeps track of.
pub const MAX_CPUS: usize = 64;
/// vCPUs in one zone.
pub const MAX_VCPUS: usize = 16;
/// virtio-mmio slots in a zone.
pub const MAX_SLOTS: usize = 32;
/// Virtqueues of one device.
pub const MAX_QUEUES: usize = 16;
/// Bytes in a zone's name, NUL-padded.
pub const NAME_LEN: usize = 32;

/// State of a zone, as the information page and [`command::ZoneInfo`] give it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum ZoneState {
    /// The slot is free.
    None = 0,
    /// Created: takes memory and devices, not yet started.
    Created = 1,
    /// At least one vCPU is on.
    Running = 2,
    /// A stop or pause was asked for and some vCPU has not left the guest yet.
    Stopping = 3,
    /// All vCPUs are held at EL2; resume goes on.
    Paused = 4,
    /// No vCPU runs; [`StopReason`] says why. May be started again or destroyed.
    Stopped = 5,
    /// A vCPU did what cannot be continued. Held for inspection until stopped.
    Crashed = 6,
}

impl TryFrom<u8> for ZoneState {
    type Error = u8;
    fn try_from(value: u8) -> Result<Self, u8> {
        Ok(match value {
            0 => Self::None,
            1 => Self::Created,
            2 => Self::Running,
            3 => Self::Stopping,
            4 => Self::Paused,
            5 => Self::Stopped,
            6 => Self::Crashed,
            other => return Err(other),
        })
    }
}

/// Why a zone is [`ZoneState::Stopped`] or [`ZoneState::Crashed`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum StopReason {
    /// It is not stopped.
    None = 0,
    /// Root asked for it.
    Requested = 1,
    /// PSCI SYSTEM_OFF.
    SystemOff = 2,
    /// PSCI SYSTEM_RESET: `on_reboot` says what happens.
    SystemReset = 3,
    /// Every vCPU called PSCI CPU_OFF.
    AllCpusOff = 4,
    /// An exception that EL2 cannot hand back to the guest.
    Fault = 5,
}

impl TryFrom<u8> for StopReason {
    type Error = u8;
    fn try_from(value: u8) -> Result<Self, u8> {
        Ok(match value {
            0 => Self::None,
            1 => Self::Requested,
            2 => Self::SystemOff,
            3 => Self::SystemReset,
            4 => Self::AllCpusOff,
            5 => Self::Fault,
            other => return Err(other),
        })
    }
}
