//! The control device as root drives it: the doorbell pages, the commands and the information page
//! (`ringvisor::abi`).
//!
//! Root is not trusted: a command is copied into EL2's memory word by word and checked there.

mod command;
pub mod info;

use log::warn;
use ringvisor::abi::command::CommandStatus;
use ringvisor::abi::counters::CpuEvent;
use ringvisor::abi::info::ZoneSummary;
use ringvisor::abi::trace::Kind;
use ringvisor::abi::{doorbell, shared};
use ringvisor::addr::{PAGE_SIZE, Pa};
use ringvisor::syndrome::Width;

use super::channel::{function, shared_page};
use super::mm::frames::RegisterFrame;
use super::stats;
use super::sync::{Mutex, Once};
use super::zone::{Zone, registry};

/// Serializes commands, attaches and detaches.
static COMMANDS: Mutex<()> = Mutex::new(());
/// The control page's command slot.
static SLOT: Once<Pa> = Once::new();

/// The frames of the device that root's stage 2 maps.
pub struct Pages {
    /// Configuration space of the function.
    pub config: Pa,
    /// All ones, as the configuration space of absent functions reads.
    pub ones: Pa,
    /// The information page.
    pub info: Pa,
    /// The control page's command slot, which root writes.
    pub slot: Pa,
}

/// Builds the device with BAR 0 at `bar` and INTx at `intid`; its frames are never freed. `root` returns what
/// the information page shows of root.
///
/// # Errors
/// There is no register frame.
pub fn init(bar: Pa, intid: u32, root: fn() -> ZoneSummary) -> Result<Pages, &'static str> {
    let no_frame = "no register frame for the control device";
    let config = function::init(bar, intid).ok_or(no_frame)?;
    let ones = RegisterFrame::new().ok_or(no_frame)?;
    let slot = RegisterFrame::new().ok_or(no_frame)?;
    for offset in (0..PAGE_SIZE as usize).step_by(4) {
        ones.set32(offset, u32::MAX);
    }
    let pages = Pages {
        config,
        ones: ones.pa(),
        info: info::init(root).ok_or(no_frame)?,
        slot: slot.pa(),
    };
    SLOT.call_once(|| pages.slot);
    // They stay mapped into root.
    core::mem::forget((ones, slot));
    Ok(pages)
}

/// Emulates a store of root's to BAR 0 at `offset`. Only the doorbell pages react. Returns false if the store
/// is to be executed again: a long command is executed in parts, between which root takes its interrupts.
pub fn bar_write(offset: u32, width: Width, value: u64) -> bool {
    let register = offset.checked_sub(doorbell::PAGE_OFFSET as u32);
    match (register.and_then(|register| u16::try_from(register).ok()), width) {
        (Some(doorbell::USED_BUFFER), Width::Word) => {
            if let Some((number, slot)) = doorbell::parse_used_buffer(value as u32) {
                stats::count(CpuEvent::Doorbells);
                stats::record_trap(Kind::Doorbell, number, slot, 0);
                registry::with(number, |zone| zone.used_buffer(usize::from(slot)));
            }
        }
        (Some(doorbell::CONSOLE_INPUT), Width::Word) => {
            if let Ok(number) = u8::try_from(value) {
                registry::with(number, Zone::console_input);
            }
        }
        (Some(doorbell::COMMAND), Width::Word) => {
            let slot = shared_page::address().map(|page| Pa(page.0 + shared::COMMAND as u64));
            return execute_command(slot, false);
        }
        (Some(_), _) => {}
        (None, _) => return control_write(offset, width, value),
    }
    true
}

/// Emulates a store behind the serving part, as [`bar_write`], which is on the path of each request.
#[inline(never)]
fn control_write(offset: u32, width: Width, value: u64) -> bool {
    let register = offset.checked_sub(doorbell::CONTROL_OFFSET as u32);
    match (register.and_then(|register| u16::try_from(register).ok()), width) {
        (Some(doorbell::COMMAND), Width::Word) => return execute_command(SLOT.get().copied(), true),
        (Some(doorbell::ATTACH), Width::Double) => attach(Some(Pa(value))),
        (Some(doorbell::DETACH), Width::Word) => attach(None),
        (Some(doorbell::PULSES), Width::Word) => function::set_pulses(value as u32 == 1),
        _ => {}
    }
    true
}

/// Attaches `page` as the shared page, or detaches the one that is attached, and shows root how that ended.
#[inline(never)]
fn attach(page: Option<Pa>) {
    let _guard = COMMANDS.lock();
    let zones = registry::count();
    let result = match page {
        Some(page) => shared_page::attach(page, zones),
        None => shared_page::detach(zones),
    };
    let (status, detail) = result.err().unwrap_or((CommandStatus::Ok, 0));
    if result.is_err() {
        warn!("attach refused: {status:?} ({detail:#x})");
    }
    info::set_attach_status(status, detail);
    info::refresh();
}

/// Executes the command in `slot`, if there is one, and returns whether it has ended. Apart from
/// [`bar_write`], whose other registers are on the path of each request.
#[inline(never)]
fn execute_command(slot: Option<Pa>, control: bool) -> bool {
    let _guard = COMMANDS.lock();
    if let Some(slot) = slot {
        if !command::execute(slot, control) {
            return false;
        }
        info::refresh();
    }
    stats::count(CpuEvent::Commands);
    true
}
