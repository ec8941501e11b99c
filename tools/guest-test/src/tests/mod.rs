//! The tests, in groups that the command line selects.

mod aborts;
mod blk;
mod console;
mod features;
mod flash;
mod gic;
mod gpio;
mod inherited;
mod net;
mod orphans;
mod psci;
mod queue;
mod race;
mod rng;
mod sysreg;
mod timer;
mod tlb;
mod transport;
mod uart;

use crate::context::Context;
use crate::report::Suite;

/// A group of tests.
pub type Group = fn(&mut Suite, &mut Context<'_>);

/// Groups that need flash, or an action from outside: typing, the power key, resizing the first disk or
/// killing the daemon; they run only if selected.
pub const INTERACTIVE: [&str; 6] = [FLASH, UART_RX, POWER_KEY, CAPACITY, RESET, REBOOT];
const FLASH: &str = "flash";
const POWER_KEY: &str = "power-key";
const UART_RX: &str = "uart-rx";
const CAPACITY: &str = "capacity";
const RESET: &str = "orphans-reset";
const REBOOT: &str = "orphans-reboot";

/// All groups, in the order in which they run.
pub const GROUPS: &[(&str, Group)] = &[
    ("inherited", inherited::run),
    ("tlb", tlb::run),
    ("transport", transport::run),
    ("blk", blk::run),
    ("queue", queue::run),
    ("features", features::run),
    ("rng", rng::run),
    ("console", console::run),
    ("net", net::run),
    ("race", race::run),
    ("gic", gic::run),
    ("timer", timer::run),
    ("psci", psci::run),
    ("uart", uart::run),
    (UART_RX, uart::receive),
    ("gpio", gpio::run),
    (POWER_KEY, gpio::power_key),
    (FLASH, flash::run),
    (CAPACITY, features::capacity),
    (RESET, orphans::reset),
    (REBOOT, orphans::reboot),
    ("sysreg", sysreg::run),
    ("aborts", aborts::run),
];
