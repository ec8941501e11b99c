//! The argument of every test: [`Context`].

use arm_gic::gicv3::GicV3;
use arm_gic::{IntId, Trigger};

use crate::machine::Machine;

/// The machine under test and its interrupt controller.
pub struct Context<'m> {
    /// The machine.
    pub machine: &'m Machine,
    /// Its interrupt controller.
    pub gic: GicV3<'static>,
}

impl Context<'_> {
    /// Sets trigger and priority of an SPI, and routes it to the CPU with this MPIDR. Does not enable it.
    pub fn set_up_spi(&mut self, intid: IntId, trigger: Trigger, mpidr: u64) {
        let _ = self.gic.set_trigger(intid, None, trigger);
        let _ = self.gic.set_interrupt_priority(intid, None, 0xa0);
        let _ = self.gic.distributor().set_routing(intid, Some(mpidr));
    }
}
