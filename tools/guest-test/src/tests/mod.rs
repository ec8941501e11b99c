//! The tests, in groups that the command line can choose from.

mod blk;
mod gic;
mod psci;
mod queue;
mod race;
mod sysreg;
mod timer;
mod transport;
mod uart;
mod wild;

pub use race::disturb;

use crate::Context;
use crate::report::Suite;

/// A group of tests.
pub type Group = fn(&mut Suite, &mut Context<'_>);

/// The group that wants somebody to type; only run if it is asked for.
pub const INTERACTIVE: &str = "uart-rx";

/// All groups, in the order in which they run.
pub const GROUPS: &[(&str, Group)] = &[
    ("transport", transport::run),
    ("blk", blk::run),
    ("queue", queue::run),
    ("race", race::run),
    ("gic", gic::run),
    ("timer", timer::run),
    ("psci", psci::run),
    ("uart", uart::run),
    (INTERACTIVE, uart::receive),
    ("sysreg", sysreg::run),
    ("wild", wild::run),
];
