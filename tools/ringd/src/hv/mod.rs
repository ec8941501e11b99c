//! EL2 as the daemon sees it.
//!
//! [`Hypervisor`] is the border: [`device`] implements it with the control device, [`fake`] with a model in
//! this process, so that everything above runs on an ordinary host. [`commands`] has a function for each
//! operation of the contract. [`mapping`] holds the memory that both sides share.

pub mod commands;
pub mod counters;
pub mod device;
pub mod fake;
mod log;
pub mod mapping;
pub mod pci;

use std::fs::File;
use std::os::fd::OwnedFd;

use ringvirtio::ReadWidth;
use ringvisor::abi::ZoneState;
use ringvisor::abi::command::{CommandStatus, Header, Op};
use ringvisor::abi::info::InfoPage;

pub use mapping::SharedPage;

/// The interrupt of the control device: what becomes readable when EL2 has an event.
pub struct Interrupt {
    /// `/dev/uioN`, or an eventfd.
    pub fd: OwnedFd,
    /// Bytes to read of it.
    pub width: ReadWidth,
    /// The file that names the CPU that takes it, if there is one: `/proc/irq/N/effective_affinity_list`.
    pub cpu: Option<File>,
}

/// EL2, for the daemon. May be called from any thread.
pub trait Hypervisor: Send + Sync {
    /// Returns a copy of the information page as it is now.
    fn info(&self) -> InfoPage;

    /// Executes a command: `header` and `payload` go in, up to `result.len()` bytes of payload come back.
    ///
    /// # Errors
    /// EL2 refused, or `payload` does not fit into the shared page.
    fn execute(&self, header: Header, payload: &[u8], result: &mut [u8]) -> Result<Header, Refusal>;

    /// Sends a used buffer notification of that device.
    fn used_buffer(&self, zone: u8, slot: u8);

    /// Announces console input for the zone.
    fn console_input(&self, zone: u8);

    /// Returns the 64-bit word at `offset` of BAR 0, without an exit: counters and trace buffers. 0 outside
    /// of it.
    fn bar_word(&self, offset: usize) -> u64;

    /// Returns the shared page, with the rings and console buffers of all zones.
    fn shared(&self) -> &SharedPage;
}

/// A command that EL2 refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("EL2 refused {}: {}", op_name(*.op), explain(*.status, *.detail))]
pub struct Refusal {
    /// The operation.
    pub op: Option<Op>,
    /// EL2's status; an unknown number is kept.
    pub status: u32,
    /// The value that was refused.
    pub detail: u64,
}

impl Refusal {
    /// Whether the cause is `status`.
    pub fn is(&self, status: CommandStatus) -> bool {
        self.status == status as u32
    }
}

/// Returns the text in a field of EL2's that NUL ends.
pub fn text(field: &[u8]) -> String {
    let bytes = field.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(bytes).into_owned()
}

fn op_name(op: Option<Op>) -> String {
    op.map_or_else(|| "to attach".into(), |op| format!("{op:?}"))
}

fn state_name(state: u64) -> String {
    let known = u8::try_from(state)
        .ok()
        .and_then(|state| ZoneState::try_from(state).ok());
    known.map_or_else(|| state.to_string(), |state| format!("{state:?}").to_lowercase())
}

fn explain(status: u32, detail: u64) -> String {
    let Ok(status) = CommandStatus::try_from(status) else {
        return format!("status {status} (detail {detail:#x})");
    };
    match status {
        CommandStatus::Ok => "success".into(),
        CommandStatus::UnknownOp => "it does not know this operation".into(),
        CommandStatus::BadArgument => format!("argument {detail:#x} is out of range"),
        CommandStatus::NoSuchZone => "no zone of that number".into(),
        CommandStatus::WrongState => format!("the zone's state ({}) does not allow it", state_name(detail)),
        CommandStatus::NoSuchCpu => format!("the machine has no CPU with MPIDR {detail:#x}"),
        CommandStatus::CpuBusy => {
            format!("the CPU with MPIDR {detail:#x} is online in root or held by another zone")
        }
        CommandStatus::NotRootRam => format!("block {detail:#x} is not root's RAM"),
        CommandStatus::Misaligned => format!("block {detail:#x} is not 2 MiB-aligned"),
        CommandStatus::BlockInUse => format!("block {detail:#x} is held by a zone or shared with EL2"),
        CommandStatus::IpaInUse => {
            format!("guest-physical {detail:#x} is mapped or outside of the zone's RAM")
        }
        CommandStatus::OutOfMemory => format!("out of page frames at EL2 ({detail} requested)"),
        CommandStatus::TooManyZones => "all zone numbers are taken".into(),
        CommandStatus::NoSuchDevice => format!("slot {detail} has no device"),
        CommandStatus::SlotInUse => format!("slot {detail} has a device"),
        CommandStatus::VersionMismatch => {
            format!("the shared page is of version {detail} of the interface, EL2 of another")
        }
        CommandStatus::NotAttached => "no shared page is attached".into(),
        CommandStatus::ZonesExist => {
            format!("zones exist ({detail}), and their shared page is in use until they are destroyed")
        }
        CommandStatus::BadDevice => "the device specification is contradictory".into(),
        CommandStatus::Stale => format!("generation {detail} is not the pending reset's"),
    }
}
