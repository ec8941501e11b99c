//! The ABI between EL2 and user space in root: memory layouts, doorbells, commands.
//!
//! Three parts:
//! - [`info`], [`doorbell`], [`counters`], [`trace`], [`log`]: BAR 0 of the control device. Root reads it
//!   without an exit; a store to a doorbell page traps and is the hypercall.
//! - [`shared`]: one 2 MiB huge page of root's own memory that the daemon donates with `ATTACH`. Ordinary
//!   cacheable memory on both sides: the command slot, and per zone the event ring and the console buffers.
//! - [`command`]: the operations that the command doorbell executes.
//!
//! EL2 trusts no byte that root can write: a command is copied once, then checked. All integers are
//! little-endian. The version changes whenever a layout or a meaning does.

/// Defines an enum of numbers on the wire, and its checked conversion from the number.
macro_rules! numbered {
    (
        $(#[$meta:meta])*
        pub enum $name:ident: $integer:ident { $($(#[$doc:meta])* $variant:ident = $number:literal,)* }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr($integer)]
        pub enum $name { $($(#[$doc])* $variant = $number,)* }

        impl TryFrom<$integer> for $name {
            type Error = $integer;
            fn try_from(value: $integer) -> Result<Self, $integer> {
                match value {
                    $($number => Ok(Self::$variant),)*
                    other => Err(other),
                }
            }
        }
    };
}

pub mod command;
pub mod counters;
pub mod doorbell;
pub mod info;
pub mod log;
pub mod machine;
pub mod shared;
pub mod trace;

/// Version of everything in this module; EL2 and daemon must have the same.
pub const ABI_VERSION: u32 = 4;

/// Magic number of the information page and of the shared page: "RINGVISR".
pub const MAGIC: u64 = u64::from_le_bytes(*b"RINGVISR");

/// PCI vendor of the control device (pid.codes, for open projects).
pub const PCI_VENDOR: u16 = 0x1209;
/// PCI device number of the control device.
pub const PCI_DEVICE: u16 = 0x7276;
/// Bytes of BAR 0: the serving part, then the control page and its slot ([`doorbell`]).
pub const BAR_SIZE: u64 = 1 << 20;
/// Bytes of BAR 0 that a process maps which serves zones: the information page, the serving doorbell page,
/// counters, trace buffers and EL2's log. Whole pages in any of Linux's page sizes, so that nothing else is
/// mapped with it.
pub const SERVING_SIZE: u64 = 512 << 10;

/// Number of the root zone.
pub const ROOT_ZONE: u8 = 0;
/// Most zones, including root; zone numbers are below this.
pub const MAX_ZONES: usize = 16;
/// Most physical CPUs.
pub const MAX_CPUS: usize = 64;
/// Most vCPUs of a zone.
pub const MAX_VCPUS: usize = 16;
/// virtio-mmio slots of a zone.
pub const MAX_SLOTS: usize = 32;
/// Most virtqueues of a device.
pub const MAX_QUEUES: usize = 16;
/// Bytes of a zone's name, NUL-padded.
pub const NAME_LEN: usize = 32;

numbered! {
    /// State of a zone, in the information page and [`command::ZoneInfo`].
    pub enum ZoneState: u8 {
        /// The slot is free.
        None = 0,
        /// Created: accepts memory and devices, not yet started.
        Created = 1,
        /// At least one vCPU is on.
        Running = 2,
        /// A stop or pause was requested and some vCPU has not left the guest yet.
        Stopping = 3,
        /// All vCPUs are held at EL2 until a resume.
        Paused = 4,
        /// No vCPU runs; see [`StopReason`]. Can be started again or destroyed.
        Stopped = 5,
        /// A vCPU took an exception that EL2 cannot handle. Kept for inspection until it is stopped.
        Crashed = 6,
    }
}

numbered! {
    /// Why a zone is [`ZoneState::Stopped`] or [`ZoneState::Crashed`].
    pub enum StopReason: u8 {
        /// The zone is not stopped.
        None = 0,
        /// Root requested it.
        Requested = 1,
        /// PSCI SYSTEM_OFF.
        SystemOff = 2,
        /// PSCI SYSTEM_RESET; `on_reboot` of the zone file determines what follows.
        SystemReset = 3,
        /// Every vCPU called PSCI CPU_OFF.
        AllCpusOff = 4,
        /// An exception that EL2 cannot return to the guest.
        Fault = 5,
    }
}
