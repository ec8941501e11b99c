//! Root's interrupts: its GIC and the list registers of its CPUs. vCPU numbers of root are CPU numbers.

use ringvisor::abi::ROOT_ZONE;
use ringvisor::vgic::{Kicks, RootGic};

use super::Root;
use crate::el2::cpu::{self, Cpu};
use crate::el2::gic::{self, LocalShadow};

impl Root {
    /// Requests a flush of list registers that are out of date, and kicks their CPUs.
    pub(super) fn request_flush(&self, kicks: Kicks) {
        for index in self.flush_requests.raise(kicks).iter() {
            if let Some(cpu) = cpu::all().get(index) {
                gic::kick(cpu);
            }
        }
    }

    /// Changes root's GIC and refills this CPU's list registers.
    pub(super) fn with_gic<T>(
        &self,
        cpu: &Cpu,
        change: impl FnOnce(&mut RootGic, &mut LocalShadow<'_>) -> (Kicks, T),
    ) -> T {
        let (kicks, result) = gic::with_list_registers(|list| {
            let mut gic = self.gic.lock();
            let (kicks, result) = change(&mut gic, list);
            (kicks | gic.flush(cpu.index, list), result)
        });
        self.request_flush(kicks.without(cpu.index));
        result
    }

    /// Routes an SPI, which arrived at a CPU that has changed hands meanwhile, to a CPU of root's.
    pub fn reroute(&self, intid: u32) {
        if let Some(cpu) = cpu::all()
            .iter()
            .find(|cpu| cpu.owner() == ROOT_ZONE && cpu.is_running())
        {
            self.gic.lock().reroute(intid, cpu.index, &mut gic::Physical);
            gic::set_pending(intid);
        }
    }
}
