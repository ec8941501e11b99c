//! The PCI function of the control device: its configuration space, and its interrupt (INTx), which wakes the
//! daemon.

use core::sync::atomic::{AtomicU32, Ordering};

use ringvisor::abi::ROOT_ZONE;
use ringvisor::abi::counters::CpuEvent;
use ringvisor::abi::trace::Kind;
use ringvisor::addr::Pa;
use ringvisor::pci::{CONFIG_SIZE, ConfigSpace, Effect, Page};
use ringvisor::syndrome::Width;

use crate::el2::mm::frames::RegisterFrame;
use crate::el2::sync::{Mutex, Once};
use crate::el2::{gic, stats};

struct Function {
    config: Mutex<Config>,
    /// INTID of INTx.
    intid: u32,
    /// Times that INTx was raised.
    raised: AtomicU32,
}

/// Configuration space and the frame in which root reads it.
struct Config {
    space: ConfigSpace,
    frame: RegisterFrame,
}

static FUNCTION: Once<Function> = Once::new();

impl Page for RegisterFrame {
    fn store(&mut self, offset: u16, value: u32) {
        self.set32(usize::from(offset), value);
    }
}

impl Function {
    fn change<T>(&self, change: impl FnOnce(&mut ConfigSpace, &mut RegisterFrame) -> T) -> T {
        let mut config = self.config.lock();
        let Config { space, frame } = &mut *config;
        change(space, frame)
    }

    /// Raises INTx. Without the lock of configuration space, for the distributor is slow: if root sets INTx
    /// Disable meanwhile, the interrupt arrives a moment too late.
    fn raise(&self) {
        self.raised.fetch_add(1, Ordering::Relaxed);
        gic::set_pending(self.intid);
    }
}

/// Builds the function with BAR 0 at `bar`. Returns the page of configuration space, for root's stage 2.
///
/// # Errors
/// There is no register frame.
pub fn init(bar: Pa, intid: u32) -> Option<Pa> {
    let mut frame = RegisterFrame::new()?;
    let space = ConfigSpace::new(bar);
    space.fill(&mut frame);
    let pa = frame.pa();
    FUNCTION.call_once(|| Function {
        config: Mutex::new(Config { space, frame }),
        intid,
        raised: AtomicU32::new(0),
    });
    Some(pa)
}

/// Raises INTx, which wakes the daemon, unless it is asserted already or disabled.
pub fn assert_intx() {
    let Some(function) = FUNCTION.get() else { return };
    if function.change(|space, page| space.assert_intx(page)) == Effect::RaiseIntx {
        stats::count(CpuEvent::EventInterrupts);
        stats::record(Kind::EventInterrupt, ROOT_ZONE, 0, 0, 0);
        function.raise();
    }
}

/// Chooses between INTx as PCI has it and one pulse per event (`doorbell::PULSES`).
pub fn set_pulses(pulses: bool) {
    let Some(function) = FUNCTION.get() else { return };
    if function.change(|space, page| space.set_pulses(page, pulses)) == Effect::RaiseIntx {
        function.raise();
    }
}

/// Emulates a store of root's to configuration space at `offset` in the ECAM window. Only function 0 of
/// device 0 exists.
pub fn config_write(offset: u32, width: Width, value: u64) {
    let (Some(function), Ok(offset)) = (FUNCTION.get(), u16::try_from(offset)) else {
        return;
    };
    if usize::from(offset) >= CONFIG_SIZE {
        return;
    }
    let effect = function.change(|space, page| {
        let effect = space.write(page, offset, width.bytes() as u8, value);
        if effect == Effect::IntxMasked {
            // Linux's handler has seen the interrupt.
            space.deassert_intx(page);
        }
        effect
    });
    if effect == Effect::RaiseIntx {
        function.raise();
    }
}

/// Returns the INTID of INTx and how often it was raised.
pub fn interrupt() -> (u32, u32) {
    FUNCTION.get().map_or((0, 0), |function| {
        (function.intid, function.raised.load(Ordering::Relaxed))
    })
}
