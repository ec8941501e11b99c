//! The PL011 as console: [`println!`], and raw access for the tests of the device itself.

use core::fmt::{self, Write};
use core::ptr::NonNull;

use arm_pl011_uart::{PL011Registers, Uart, UniqueMmioPointer};
use spin::Mutex;

static CONSOLE: Mutex<Option<Uart<'static>>> = Mutex::new(None);

/// Starts to print on the PL011 at `base`.
///
/// # Safety
/// `base` is the address of a PL011, mapped as device memory, that nothing else drives as a [`Uart`].
pub unsafe fn init(base: u64) {
    if let Some(registers) = NonNull::new(base as *mut PL011Registers) {
        // SAFETY: promised by the caller.
        *CONSOLE.lock() = Some(Uart::new(unsafe { UniqueMmioPointer::new(registers) }));
    }
}

/// Prints, if there is a console.
pub fn print(arguments: fmt::Arguments<'_>) {
    if let Some(uart) = CONSOLE.lock().as_mut() {
        let _ = Crlf(uart).write_fmt(arguments);
    }
}

/// Prints although another context may hold the console's lock: for a panic.
pub fn print_forced(arguments: fmt::Arguments<'_>) {
    // SAFETY: the context that holds the lock never continues, or is this CPU in an exception.
    unsafe { CONSOLE.force_unlock() };
    print(arguments);
}

/// Text lines with the line ends of a terminal.
struct Crlf<'c>(&'c mut Uart<'static>);

impl Write for Crlf<'_> {
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

impl Crlf<'_> {
    fn put(&mut self, byte: u8) {
        while self.0.is_tx_fifo_full() {
            core::hint::spin_loop();
        }
        self.0.write_word(byte);
    }
}

/// Prints a line.
macro_rules! println {
    ($($argument:tt)*) => {
        $crate::console::print(format_args!("{}\n", format_args!($($argument)*)))
    };
}
pub(crate) use println;
