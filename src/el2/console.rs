//! EL2's log in memory ([`ringvisor::abi::log`]), and its way to the machine's PL011, which root's console
//! shares.
//!
//! A line is put into the log. From there CPUs send it to the UART as far as the transmit FIFO has room, at
//! most [`BUDGET`] bytes before they enter a guest ([`drain`]), so that no CPU waits for the UART. During
//! boot, when the machine ends and in a panic, what is left is sent at once ([`flush`]). What the ring
//! overwrites before it was sent is lost to the UART.

use core::fmt::{self, Write};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use arm_pl011_uart::{DataBits, LineConfig, PL011Registers, Parity, StopBits, Uart, UniqueMmioPointer};
use ringvisor::abi::log::{Log, MAX_LINE, Opened};
use ringvisor::addr::Pa;

use super::sync::Mutex;
use super::{arch, mm};

/// Most bytes that a CPU sends before it enters a guest.
const BUDGET: usize = 256;
/// Polls of a full transmit FIFO per byte before EL2 gives up: the UART may be switched off.
const ATTEMPTS: u32 = 1 << 20;
/// Offset of UARTCR.
const UARTCR: usize = 0x30;
/// UARTCR.UARTEN and TXE.
const UARTCR_ON: u32 = 1 | 1 << 8;
/// UARTCLK in Hz where the device tree does not say it.
const DEFAULT_CLOCK: u32 = 24_000_000;

/// Whether the log is open.
static OPEN: AtomicBool = AtomicBool::new(false);
/// Serializes lines in the log.
static WRITERS: Mutex<()> = Mutex::new(());
/// Address of the UART, 0 for none.
static UART: AtomicUsize = AtomicUsize::new(0);
/// Held by the CPU that sends to the UART.
static SENDER: Mutex<()> = Mutex::new(());
/// Position in the log of the next byte to send; changed by the holder of [`SENDER`].
static SENT: AtomicU64 = AtomicU64::new(0);
/// Whether there may be something to send.
static PENDING: AtomicBool = AtomicBool::new(false);
/// Whether lines are sent at once: no guest waits for the CPU that boots.
static BOOTING: AtomicBool = AtomicBool::new(true);
/// A CPU has panicked: the machine is about to end, and locks may be held forever.
static PANICKED: AtomicBool = AtomicBool::new(false);

/// A line that is being formatted; what does not fit is cut.
struct Line {
    bytes: [u8; MAX_LINE],
    len: usize,
}

impl Line {
    fn push(&mut self, byte: u8) {
        // Room for the CR LF at the end.
        let room = if matches!(byte, b'\r' | b'\n') {
            MAX_LINE
        } else {
            MAX_LINE - 2
        };
        if self.len < room
            && let Some(place) = self.bytes.get_mut(self.len)
        {
            *place = byte;
            self.len += 1;
        }
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                self.push(b'\r');
            }
            self.push(byte);
        }
        Ok(())
    }
}

/// Returns the log, if it is open.
fn log() -> Option<&'static Log> {
    // SAFETY: the range is EL2's, whole pages of `Log`'s size, never freed, and not used otherwise. Any
    // content is a valid `Log`. It is mapped non-cacheable once it is open.
    OPEN.load(Ordering::Relaxed)
        .then(|| unsafe { &*(mm::log_range().0 as *const Log) })
}

/// Opens the log, whose memory is mapped non-cacheable from now on. Returns what is there from earlier
/// starts.
pub fn open() -> Opened {
    OPEN.store(true, Ordering::Relaxed);
    let Some(log) = log() else {
        return Opened::default();
    };
    let opened = log.open();
    SENT.store(opened.panic.unwrap_or(log.written()), Ordering::Relaxed);
    PENDING.store(opened.panic.is_some(), Ordering::Relaxed);
    opened
}

/// Uses the PL011 at `base`, which is mapped as Device memory, from now on; `clock` is its UARTCLK in Hz.
pub fn init(base: Pa, clock: Option<u32>) {
    // SAFETY: the device tree says that this is a PL011, whose UARTCR is a word.
    let control = unsafe { ((base.0 as usize + UARTCR) as *const u32).read_volatile() };
    UART.store(base.0 as usize, Ordering::Relaxed);
    // What firmware has set up fits the line; the clock may have changed since the device tree was written.
    if control & UARTCR_ON != UARTCR_ON
        && let Some(mut uart) = uart()
    {
        let config = LineConfig {
            data_bits: DataBits::Bits8,
            parity: Parity::None,
            stop_bits: StopBits::One,
        };
        let _ = uart.enable(config, 115_200, clock.unwrap_or(DEFAULT_CLOCK));
    }
}

fn uart() -> Option<Uart<'static>> {
    let registers = NonNull::new(UART.load(Ordering::Relaxed) as *mut PL011Registers)?;
    // SAFETY: `init` was given a PL011 that is mapped. EL2 only transmits, under SENDER, which a panic
    // ignores. Root drives the same device: both poll the FIFO flags, so the worst is interleaved text.
    Some(Uart::new(unsafe { UniqueMmioPointer::new(registers) }))
}

/// Lets lines wait for [`drain`] from now on: guests run.
pub fn booted() {
    BOOTING.store(false, Ordering::Relaxed);
}

/// Writes a line to the log, whatever the log level.
pub fn print(text: fmt::Arguments<'_>) {
    let Some(log) = log() else { return };
    let mut line = Line {
        bytes: [0; MAX_LINE],
        len: 0,
    };
    // `Line` never fails.
    let _ = line.write_fmt(text);
    let bytes = line.bytes.get(..line.len).unwrap_or_default();
    if PANICKED.load(Ordering::Relaxed) {
        log.append(bytes);
    } else {
        let _writers = WRITERS.lock();
        log.append(bytes);
    }
    PENDING.store(true, Ordering::Release);
    if BOOTING.load(Ordering::Relaxed) {
        flush();
    }
}

/// Sends at most `budget` bytes, each after at most `attempts` polls of a full FIFO. Returns whether more is
/// left.
#[inline(never)]
fn send(budget: usize, attempts: u32) -> bool {
    let (Some(log), Some(mut uart)) = (log(), uart()) else {
        return false;
    };
    PENDING.store(false, Ordering::Relaxed);
    let mut position = SENT.load(Ordering::Relaxed).max(log.oldest());
    let end = log.written();
    let mut left = budget;
    while position < end && left > 0 {
        let mut polls = attempts;
        while polls > 0 && uart.is_tx_fifo_full() {
            polls -= 1;
            arch::relax();
        }
        if polls == 0 {
            break;
        }
        uart.write_word(log.byte(position));
        position += 1;
        left -= 1;
    }
    SENT.store(position, Ordering::Relaxed);
    if position < end {
        PENDING.store(true, Ordering::Release);
    }
    position < end
}

/// Sends some of what is left to send, without waiting. Returns whether more is left.
#[inline]
pub fn drain() -> bool {
    PENDING.load(Ordering::Relaxed) && drain_some()
}

#[cold]
#[inline(never)]
fn drain_some() -> bool {
    // Another CPU is at it.
    SENDER.try_lock().is_some_and(|_sender| send(BUDGET, 1))
}

/// Sends all that is left to send.
#[inline(never)]
pub fn flush() {
    let _sender = if PANICKED.load(Ordering::Relaxed) {
        None
    } else {
        Some(SENDER.lock())
    };
    send(usize::MAX, ATTEMPTS);
}

/// Begins a panic of this CPU: from here on locks are ignored. Returns false if another CPU was first.
pub fn begin_panic() -> bool {
    if PANICKED.swap(true, Ordering::AcqRel) {
        return false;
    }
    if let Some(log) = log() {
        log.begin_panic();
    }
    true
}

/// Returns whether a CPU has panicked.
#[inline]
pub fn panicked() -> bool {
    PANICKED.load(Ordering::Relaxed)
}
