//! A guest's accesses to its devices, and its interrupts.

use ringvisor::syndrome::Width;

use super::*;
use crate::el2::traps::{Outcome, bytes};

/// Aborts of a zone that are logged one by one; the rest is only counted.
const LOGGED_ABORTS: u32 = 1;

impl Zone {
    /// An access that stage 2 stopped. `ipa` is aligned to `width`.
    pub fn access(&self, ipa: Ipa, width: Width, stored: Option<u64>) -> Outcome {
        use machine::*;
        let at = ipa.0;
        let frames = GICR_STRIDE * self.cpus.len() as u64;
        let slots = VIRTIO_STRIDE * MAX_SLOTS as u64;
        let within = |base: u64, size: u64| at.checked_sub(base).filter(|offset| *offset < size);
        if let Some(offset) = within(VIRTIO_BASE, slots) {
            self.virtio(
                (offset / VIRTIO_STRIDE) as usize,
                (offset % VIRTIO_STRIDE) as u16,
                width,
                stored,
            )
        } else if let Some(offset) = within(UART_BASE, PAGE_SIZE) {
            self.uart_access(offset as u16, width, stored)
        } else if let Some(offset) = within(GICD_BASE, GICD_SIZE) {
            self.distributor(offset as u32, width, stored)
        } else if let Some(offset) = within(GICR_BASE, frames) {
            let vcpu = (offset / GICR_STRIDE) as usize;
            self.redistributor(vcpu, (offset % GICR_STRIDE) as u32, width, stored)
        } else if let Some(offset) = within(RTC_BASE, PAGE_SIZE) {
            self.rtc_access(offset as u16, width, stored)
        } else {
            Outcome::Abort
        }
    }

    fn distributor(&self, offset: u32, width: Width, stored: Option<u64>) -> Outcome {
        let reader = cpu::this().vcpu();
        self.with_synced_gic(|gic| match stored {
            Some(value) => (gic.dist_write(offset, bytes(width), value), Outcome::Done(0)),
            None => match gic.await_dist_read(reader, offset, bytes(width)) {
                Kicks::NONE => (Kicks::NONE, Outcome::Done(gic.dist_read(offset, bytes(width)))),
                others => (others, Outcome::Again),
            },
        })
    }

    fn redistributor(&self, vcpu: usize, offset: u32, width: Width, stored: Option<u64>) -> Outcome {
        let reader = cpu::this().vcpu();
        self.with_synced_gic(|gic| match stored {
            Some(value) => (
                gic.redist_write(vcpu, offset, bytes(width), value),
                Outcome::Done(0),
            ),
            None => match gic.await_redist_read(reader, vcpu, offset, bytes(width)) {
                Kicks::NONE => (
                    Kicks::NONE,
                    Outcome::Done(gic.redist_read(vcpu, offset, bytes(width))),
                ),
                others => (others, Outcome::Again),
            },
        })
    }

    fn rtc_access(&self, offset: u16, width: Width, stored: Option<u64>) -> Outcome {
        let mut rtc = self.rtc.lock();
        let now = seconds();
        let value = match stored {
            Some(value) => {
                rtc.write(offset, width, value, now);
                0
            }
            None => rtc.read(offset, width, now),
        };
        let line = rtc.line();
        self.let_go(rtc, machine::RTC_SPI, line);
        Outcome::Done(u64::from(value))
    }

    /// Counts a wild access; the first is logged.
    pub fn count_abort(&self, ipa: Ipa, pc: u64) {
        if self.aborts.fetch_add(1, Ordering::Relaxed) < LOGGED_ABORTS {
            warn!(
                "zone {} \"{}\": nothing at {ipa} (pc {pc:#x}): external abort injected; further ones are only counted",
                self.number,
                self.name()
            );
        }
    }

    // ---- interrupts ----

    /// Kicks the CPUs whose list registers are out of date; the caller's own are looked at before it returns.
    pub(super) fn ring(&self, kicks: Kicks) {
        let this = cpu::this();
        for vcpu in self.flush_requests.raise(kicks).iter() {
            if let Some(cpu) = self.cpus.get(vcpu)
                && cpu.index != this.index
            {
                gic::kick(cpu);
            }
        }
    }

    /// Notes the level of a line, `spi` counted from the first SPI, under the lock of its device. If true,
    /// [`Self::propagate_level`] is to be called when that is free again.
    pub(super) fn latch_level(&self, spi: u32, high: bool) -> bool {
        self.lines.get(spi as usize).is_some_and(|line| line.latch(high))
    }

    /// Lets go of a device's lock with its line at this level.
    pub(super) fn let_go<T>(&self, device: T, spi: u32, high: bool) {
        let changed = self.latch_level(spi, high);
        drop(device);
        if changed {
            self.propagate_level(spi);
        }
    }

    /// The GIC follows a line.
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
        self.ring(kicks);
    }

    /// Changes the GIC from a vCPU of this zone, after taking over what the guest did to its list registers.
    fn with_synced_gic<T>(&self, change: impl FnOnce(&mut Vgic) -> (Kicks, T)) -> T {
        let vcpu = cpu::this().vcpu();
        let (kicks, result) = gic::with_list_registers(|list| {
            let mut gic = self.gic.lock();
            let kicks = gic.sync(vcpu, list);
            let (more, result) = change(&mut gic);
            (kicks | more | gic.flush(vcpu, list), result)
        });
        self.ring(kicks.without(vcpu));
        result
    }

    /// Refills the list registers if somebody changed what belongs in them.
    pub fn flush_interrupts(&self, vcpu: usize) {
        if self.flush_requests.take(vcpu) {
            let kicks = gic::with_list_registers(|list| self.gic.lock().flush(vcpu, list));
            self.ring(kicks.without(vcpu));
        }
    }

    /// A maintenance interrupt.
    pub fn maintenance(&self, vcpu: usize) {
        let kicks = gic::with_list_registers(|list| self.gic.lock().sync(vcpu, list));
        self.ring(kicks);
    }

    /// Whether a physical interrupt is this zone's: only its timers are.
    pub fn takes(&self, intid: u32) -> bool {
        intid < 32 && TIMERS & 1 << intid != 0
    }

    /// A timer of this vCPU has fired.
    pub fn inject_physical(&self, vcpu: usize, intid: u32) {
        let kicks = gic::with_list_registers(|list| {
            let mut gic = self.gic.lock();
            gic.inject_physical(vcpu, intid) | gic.flush(vcpu, list)
        });
        self.ring(kicks.without(vcpu));
    }

    /// A write to one of the SGI registers.
    pub fn send_sgi(&self, vcpu: usize, request: &SgiRequest) {
        let kicks = self.gic.lock().send_sgi(vcpu, request);
        self.ring(kicks);
    }

    /// A trapped write to ICC_DIR_EL1.
    pub fn deactivate(&self, vcpu: usize, intid: u32) {
        let kicks = gic::with_list_registers(|list| self.gic.lock().deactivate(vcpu, intid, list));
        self.ring(kicks);
    }
}
