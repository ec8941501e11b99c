//! Root's accesses to what EL2 emulates for it: the control device, the distributor and the redistributors.

use log::warn;
use ringvisor::abi::BAR_SIZE;
use ringvisor::addr::Ipa;
use ringvisor::machine::ECAM_SIZE;
use ringvisor::syndrome::Width;
use ringvisor::vgic::Frame;

use super::Root;
use crate::el2::channel::function::config_write;
use crate::el2::control::bar_write;
use crate::el2::owner::TrapOutcome;
use crate::el2::zone::registry;
use crate::el2::{console, cpu, gic};

impl Root {
    /// Emulates an access that stage 2 did not permit. `ipa` is aligned to `width`. Not inlined, for a zone's
    /// accesses are more frequent.
    #[inline(never)]
    pub(super) fn emulate(&self, ipa: Ipa, width: Width, stored: Option<u64>) -> TrapOutcome {
        let at = ipa.0;
        if (self.bar..self.bar + BAR_SIZE).contains(&at) {
            return match stored {
                Some(value) if !bar_write((at - self.bar) as u32, width, value) => TrapOutcome::Retry,
                _ => TrapOutcome::Done(0),
            };
        }
        if (self.ecam..self.ecam + ECAM_SIZE).contains(&at) {
            if let Some(value) = stored {
                config_write((at - self.ecam) as u32, width, value);
            }
            return TrapOutcome::Done(u64::MAX);
        }
        if (self.distributor.0..self.distributor.1).contains(&at) {
            let offset = (at - self.distributor.0) as u32;
            return self.gic_access(Frame::Distributor, offset, width, stored);
        }
        match gic::redistributor_at(at) {
            Some((target, offset)) => self.gic_access(Frame::Redistributor(target), offset, width, stored),
            None => TrapOutcome::Abort,
        }
    }

    fn gic_access(&self, frame: Frame, offset: u32, width: Width, stored: Option<u64>) -> TrapOutcome {
        let (this, bytes) = (cpu::this(), width.bytes() as u32);
        let (disabled, value) = self.with_gic(this, |gic, list| {
            let (kicks, was_on) = (gic.sync(this.index, list), gic.is_on());
            let (more, value) = gic.access(this.index, frame, offset, bytes, stored, &mut gic::Physical);
            (kicks | more, (was_on && !gic.is_on(), value))
        });
        if disabled {
            kernel_replaced();
        }
        value.map_or(TrapOutcome::Retry, TrapOutcome::Done)
    }
}

/// Called when root disables its distributor: a kernel that another one has started, as by kexec, sets up its
/// GIC. It takes the memory of zones and the shared page for its own, so if zones exist the machine is reset,
/// as by any other restart of root.
#[cold]
#[inline(never)]
fn kernel_replaced() {
    let zones = registry::count();
    if zones == 0 {
        return;
    }
    warn!(
        "root's kernel was replaced while {zones} zones exist, whose memory it would use: the machine is reset"
    );
    console::flush();
    // Returns only if the firmware refuses.
    let _ = smccc::psci::system_reset::<smccc::Smc>();
}
