//! A zone's interrupts: levels of its devices' lines, its timers, SGIs, and the list registers of its CPUs.

use ringvisor::abi::machine;
use ringvisor::vgic::{Kicks, Vgic};

use super::Zone;
use crate::el2::{cpu, gic};

/// The PPIs that hardware raises for a guest, by INTID: its two timers.
pub const TIMERS: u32 = 1 << machine::VIRTUAL_TIMER | 1 << machine::PHYSICAL_TIMER;

impl Zone {
    /// Requests a flush of list registers that are out of date, and kicks their CPUs. This CPU flushes its
    /// own before it enters its guest.
    pub(super) fn request_flush(&self, kicks: Kicks) {
        let this = cpu::this();
        for vcpu in self.flush_requests.raise(kicks).iter() {
            if let Some(cpu) = self.cpus.get(vcpu)
                && cpu.index != this.index
            {
                gic::kick(cpu);
            }
        }
    }

    /// Latches the level of a device's line; `spi` counts from the first SPI. The caller holds the device's
    /// lock. On true it calls [`Self::propagate_level`] after releasing that.
    pub(super) fn latch_level(&self, spi: u32, high: bool) -> bool {
        self.lines.get(spi as usize).is_some_and(|line| line.latch(high))
    }

    /// Sets the level of a device's line and releases the device's lock, `guard`.
    pub(super) fn unlock_with_level<T>(&self, guard: T, spi: u32, high: bool) {
        let changed = self.latch_level(spi, high);
        drop(guard);
        if changed {
            self.propagate_level(spi);
        }
    }

    /// Brings the vGIC's view of a line up to date with the latched levels.
    #[inline(never)]
    pub(super) fn propagate_level(&self, spi: u32) {
        let Some(line) = self.lines.get(spi as usize) else {
            return;
        };
        let mut kicks = Kicks::NONE;
        {
            let mut gic = self.gic.lock();
            for &level in line.transitions() {
                kicks |= gic.set_line(machine::SPI_BASE + spi, level);
            }
        }
        self.request_flush(kicks);
    }

    /// Changes the vGIC from a vCPU of this zone, after syncing it with what the guest did to its list
    /// registers.
    pub(super) fn with_synced_gic<T>(&self, change: impl FnOnce(&mut Vgic) -> (Kicks, T)) -> T {
        let vcpu = cpu::this().vcpu();
        let (kicks, result) = gic::with_list_registers(|list| {
            let mut gic = self.gic.lock();
            let kicks = gic.sync(vcpu, list);
            let (more, result) = change(&mut gic);
            (kicks | more | gic.flush(vcpu, list), result)
        });
        self.request_flush(kicks.without(vcpu));
        result
    }
}
