//! EL2 as the daemon sees it.
//!
//! [`Hypervisor`] is the border: [`device`] implements it with the control device, [`fake`] with a model in
//! this process, so that everything above runs on an ordinary host. Commands that do not serve zones that
//! exist go by [`Control`]: only the broker maps the page for them ([`control`]). [`commands`] has a function
//! for each operation of the contract. [`mapping`] holds the memory that both sides share.

pub mod commands;
pub mod control;
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
use zerocopy::{FromBytes, FromZeros, IntoBytes};

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

/// What makes, feeds and ends zones at EL2: the commands that do not [serve](Op::serves). May be called from
/// any thread.
pub trait Control: Send + Sync {
    /// Executes a command: `header` and `payload` go in, up to `result.len()` bytes of payload come back.
    ///
    /// # Errors
    /// EL2 refused, or, with [`NOT_GRANTED`], the broker.
    fn command(&self, header: Header, payload: &[u8], result: &mut [u8]) -> Result<Header, Refusal>;
}

/// Status of a command that the broker has not passed to EL2.
pub const NOT_GRANTED: u32 = u32::MAX - 1;

/// Returns the information page, read word by word with `word`, which gets an offset.
fn read_info(word: impl Fn(usize) -> u64) -> InfoPage {
    let mut words = [0_u64; size_of::<InfoPage>().div_ceil(8)];
    for (index, to) in words.iter_mut().enumerate() {
        *to = word(index * 8).to_le();
    }
    let parsed = InfoPage::read_from_prefix(words.as_bytes());
    parsed.map_or_else(|_| InfoPage::new_zeroed(), |(info, _)| info)
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
    if status == NOT_GRANTED {
        return "the broker has not passed it on: the zone has not been given that".into();
    }
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
        CommandStatus::NotServing => format!("command {detail} is not one that serves a zone"),
        CommandStatus::Stale => format!("generation {detail} is not the pending reset's"),
    }
}
