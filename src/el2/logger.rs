//! EL2's log: the `log` crate's back end, one text line per record, with CPU and time, in the log of
//! `console`.

use log::{LevelFilter, Log, Metadata, Record};

use super::arch::sysreg;
use super::{console, cpu};

struct Logger;

static LOGGER: Logger = Logger;

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record) {
        if self.enabled(record.metadata()) {
            let frequency = sysreg::read!("cntfrq_el0").max(1);
            let now = sysreg::read!("cntpct_el0");
            let micros = now % frequency * 1_000_000 / frequency;
            console::print(format_args!(
                "[EL2 {:5}.{:06} cpu{} {}] {}\n",
                now / frequency,
                micros,
                cpu::this().index,
                record.level(),
                record.args()
            ));
        }
    }

    fn flush(&self) {}
}

/// Starts logging.
pub fn init(level: LevelFilter) {
    if log::set_logger(&LOGGER).is_ok() {
        log::set_max_level(level);
    }
}

/// Returns the `log` filter for a level from 1 (error) to 5 (trace); 0 is off.
pub fn level_filter(level: u8) -> LevelFilter {
    match level {
        0 => LevelFilter::Off,
        1 => LevelFilter::Error,
        2 => LevelFilter::Warn,
        3 => LevelFilter::Info,
        4 => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    }
}
