//! EL2's log: the `log` crate over the machine's PL011, which root's console shares.
//!
//! A line is put together with its CPU and time and written under a lock; a CPU that cannot have the lock within
//! a bounded time writes anyway, so that a CPU which died holding it silences nobody.

use core::fmt::{self, Write};
use core::ptr::NonNull;

use arm_pl011_uart::{DataBits, LineConfig, PL011Registers, Parity, StopBits, Uart, UniqueMmioPointer};
use log::{LevelFilter, Log, Metadata, Record};
use ringvisor::addr::Pa;

use super::arch::{self, sysreg};
use super::sync::Mutex;

/// Tries for the lock, and for room in the transmit FIFO during a line, before going on without.
const PATIENCE: u32 = 1 << 20;

struct Console(Mutex<Option<Uart<'static>>>);

static CONSOLE: Console = Console(Mutex::new(None));

/// Writes one line. A UART that has no room within the line's patience loses the rest of it: it may be switched off,
/// and nobody at EL2 may wait for it byte after byte.
struct Writer<'a> {
    uart: &'a mut Uart<'static>,
    patience: u32,
}

impl Write for Writer<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                self.put(b'\r');
            }
            self.put(byte);
        }
        Ok(())
    }
}

impl Writer<'_> {
    fn put(&mut self, byte: u8) {
        while self.uart.is_tx_fifo_full() {
            if self.patience == 0 {
                return;
            }
            self.patience -= 1;
            arch::relax();
        }
        self.uart.write_word(byte);
    }
}

impl Console {
    fn print(&self, line: fmt::Arguments<'_>) {
        let mut patience = PATIENCE;
        let mut guard = loop {
            match self.0.try_lock() {
                Some(guard) => break guard,
                None if patience == 0 => {
                    // SAFETY: the holder has kept it far longer than a line takes: it is dead, or garbled
                    // output is the worst that comes of it (the state is one pointer).
                    unsafe { self.0.force_unlock() };
                    patience = PATIENCE;
                }
                None => patience -= 1,
            }
            arch::relax();
        };
        if let Some(uart) = guard.as_mut() {
            // Writer never fails.
            let _ = Writer {
                uart,
                patience: PATIENCE,
            }
            .write_fmt(line);
        }
    }
}

impl Log for Console {
    fn enabled(&self, metadata: &Metadata) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record) {
        if self.enabled(record.metadata()) {
            let frequency = sysreg::read!("cntfrq_el0").max(1);
            let now = sysreg::read!("cntpct_el0");
            let micros = now % frequency * 1_000_000 / frequency;
            self.print(format_args!(
                "[EL2 {:5}.{:06} cpu{} {}] {}\n",
                now / frequency,
                micros,
                super::cpu::this().index,
                record.level(),
                record.args()
            ));
        }
    }

    fn flush(&self) {}
}

/// Takes the PL011 at `base` (mapped as Device memory) for the log.
pub fn init(base: Pa, level: LevelFilter) {
    let Some(registers) = NonNull::new(base.0 as *mut PL011Registers) else {
        return;
    };
    // SAFETY: the device tree says that this is a PL011; EL2 only transmits, behind the lock. Root drives the same
    // device: both poll the FIFO flags, so the worst is interleaved text.
    let mut uart = Uart::new(unsafe { UniqueMmioPointer::new(registers) });
    let line = LineConfig {
        data_bits: DataBits::Bits8,
        parity: Parity::None,
        stop_bits: StopBits::One,
    };
    // The divisor matters on real hardware only where no firmware has set it; 24 MHz is the usual clock.
    let _ = uart.enable(line, 115_200, 24_000_000);
    *CONSOLE.0.lock() = Some(uart);
    if log::set_logger(&CONSOLE).is_ok() {
        log::set_max_level(level);
    }
}

/// Prints without a level, also when logging is off: for fatal reports.
pub fn print(line: fmt::Arguments<'_>) {
    CONSOLE.print(line);
}
