//! The argument of every test: [`Context`].

use arm_gic::gicv3::GicV3;

use crate::machine::Machine;

/// The machine under test and its interrupt controller.
pub struct Context<'m> {
    /// The machine.
    pub machine: &'m Machine,
    /// Its interrupt controller.
    pub gic: GicV3<'static>,
}
