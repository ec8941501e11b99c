//! EL2's output on the machine's PL011, which root's console shares.
//!
//! Text is written under a lock. A CPU that cannot take the lock within a bounded time writes anyway, so that
//! a CPU that died while it held the lock does not silence the others.

use core::fmt::{self, Write};
use core::ptr::NonNull;

use arm_pl011_uart::{DataBits, LineConfig, PL011Registers, Parity, StopBits, Uart, UniqueMmioPointer};
use ringvisor::addr::Pa;

use super::arch;
use super::sync::Mutex;

/// Attempts to take the lock, and polls of a full transmit FIFO per text, before going on without.
const ATTEMPTS: u32 = 1 << 20;

struct Console(Mutex<Option<Uart<'static>>>);

static CONSOLE: Console = Console(Mutex::new(None));

/// Writes one text. If the transmit FIFO stays full for so many polls the rest is lost: the UART may be
/// switched off, and EL2 must not wait for it byte after byte.
struct Writer<'a> {
    uart: &'a mut Uart<'static>,
    attempts: u32,
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
            if self.attempts == 0 {
                return;
            }
            self.attempts -= 1;
            arch::relax();
        }
        self.uart.write_word(byte);
    }
}

impl Console {
    fn print(&self, text: fmt::Arguments<'_>) {
        let mut attempts = ATTEMPTS;
        let mut guard = loop {
            match self.0.try_lock() {
                Some(guard) => break guard,
                None if attempts == 0 => {
                    // SAFETY: the holder has kept it far longer than a text takes: it is dead, or garbled
                    // output is the worst consequence (the state is one pointer).
                    unsafe { self.0.force_unlock() };
                    attempts = ATTEMPTS;
                }
                None => attempts -= 1,
            }
            arch::relax();
        };
        if let Some(uart) = guard.as_mut() {
            // `Writer` never fails.
            let _ = Writer {
                uart,
                attempts: ATTEMPTS,
            }
            .write_fmt(text);
        }
    }
}

/// Uses the PL011 at `base`, which is mapped as Device memory, from now on.
pub fn init(base: Pa) {
    let Some(registers) = NonNull::new(base.0 as *mut PL011Registers) else {
        return;
    };
    // SAFETY: the device tree says that this is a PL011; EL2 only transmits, behind the lock. Root drives the
    // same device: both poll the FIFO flags, so the worst is interleaved text.
    let mut uart = Uart::new(unsafe { UniqueMmioPointer::new(registers) });
    let config = LineConfig {
        data_bits: DataBits::Bits8,
        parity: Parity::None,
        stop_bits: StopBits::One,
    };
    // The divisor matters on real hardware only where no firmware has set it; 24 MHz is the usual clock.
    let _ = uart.enable(config, 115_200, 24_000_000);
    *CONSOLE.0.lock() = Some(uart);
}

/// Prints text as it is, whatever the log level.
pub fn print(text: fmt::Arguments<'_>) {
    CONSOLE.print(text);
}
