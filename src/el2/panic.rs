//! A panic or an exception at EL2, fatal for the machine: prints the cause, the registers and a backtrace of
//! offsets into the hypervisor binary, which `make symbolize` or `llvm-symbolizer` turns into lines; then the
//! machine is reset or stops, as EL2's command line says.

use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use ringvisor::machine::PanicAction;

use super::arch::frame::{STACK_SHIFT, TrapFrame};
use super::arch::{self, boot, sysreg};
use super::cpu::{self, State};
use super::{console, gic};

/// Maximum number of frames printed.
const DEPTH: usize = 32;

/// Returns the offset of an address into the hypervisor binary.
fn offset(address: u64) -> u64 {
    address.wrapping_sub(boot::binary_start() as u64)
}

/// Prints a backtrace: follows frame records (AAPCS64, 6.4.6) as long as they lie in this CPU's stack area
/// and ascend.
fn backtrace(pc: u64, mut frame: u64) {
    console::print(format_args!(
        "backtrace (offsets into the binary; resolve with llvm-symbolizer -e ringvisor):\n"
    ));
    console::print(format_args!("  #0  {:#x}\n", offset(pc)));
    let area = frame >> (STACK_SHIFT + 1);
    let code = boot::binary_start() as u64..boot::text_end() as u64;
    for depth in 1..DEPTH {
        if frame == 0 || frame & 7 != 0 || frame >> (STACK_SHIFT + 1) != area || frame >> STACK_SHIFT & 1 == 0
        {
            break;
        }
        // SAFETY: aligned and inside the mapped half of this CPU's stack area.
        let (next, link) = unsafe { ((frame as *const u64).read(), (frame as *const u64).add(1).read()) };
        if !code.contains(&link) {
            break;
        }
        console::print(format_args!("  #{depth}  {:#x}\n", offset(link.wrapping_sub(4))));
        if next <= frame {
            break;
        }
        frame = next;
    }
}

/// What follows: [`PanicAction::Halt`] if true.
static HALTS: AtomicBool = AtomicBool::new(false);

/// Sets how the machine ends after a panic.
pub fn set_action(action: PanicAction) {
    HALTS.store(action == PanicAction::Halt, Ordering::Relaxed);
}

/// Index of the CPU whose panic is being reported.
static REPORTER: AtomicUsize = AtomicUsize::new(usize::MAX);

/// Begins the report of a panic. If another CPU's panic is being reported, this one waits for the machine's
/// end; if the report itself panics, it ends there.
fn begin() {
    let this = cpu::this().index;
    if console::begin_panic() {
        REPORTER.store(this, Ordering::Relaxed);
    } else if REPORTER
        .compare_exchange(this, usize::MAX, Ordering::Relaxed, Ordering::Relaxed)
        .is_ok()
    {
        end();
    } else {
        arch::halt();
    }
}

/// Reports how the machine ends, and ends it.
fn stop() -> ! {
    let how = if HALTS.load(Ordering::Relaxed) {
        "stops"
    } else {
        "is reset"
    };
    console::print(format_args!("EL2: the machine {how}\n"));
    console::flush();
    end()
}

/// Ends the machine: locks are held and invariants are lost.
fn end() -> ! {
    cpu::this().set_state(State::Dead);
    if !HALTS.load(Ordering::Relaxed) {
        // Returns only if the firmware refuses.
        let _ = smccc::psci::system_reset::<smccc::Smc>();
    }
    // The others stop when they take the SGI, or wait for a lock of this CPU's.
    gic::kick_others();
    arch::halt()
}

/// Reports an exception taken at EL2 itself; `kind` is 0 synchronous, 1 IRQ, 2 FIQ, 3 SError, 4 stack
/// overflow.
// SAFETY: the only definition of the symbol that `arch::entry` declares, with its signature.
#[unsafe(no_mangle)]
pub extern "C" fn el2_exception(frame: &TrapFrame, kind: u64) -> ! {
    let name = match kind {
        0 => "synchronous exception",
        1 => "IRQ",
        2 => "FIQ",
        3 => "SError",
        _ => "stack overflow",
    };
    begin();
    console::print(format_args!(
        "\nEL2 PANIC: cpu{}: {name} at EL2\n  ESR_EL2 {:#018x}  FAR_EL2 {:#018x}  HPFAR_EL2 {:#x}\n  ELR_EL2 {:#018x} (offset {:#x})  SPSR_EL2 {:#x}\n",
        cpu::this().index,
        sysreg::read!("esr_el2"),
        sysreg::read!("far_el2"),
        sysreg::read!("hpfar_el2"),
        frame.elr,
        offset(frame.elr),
        frame.spsr
    ));
    for (row, values) in frame.x.chunks(4).enumerate() {
        console::print(format_args!(" "));
        for (column, value) in values.iter().enumerate() {
            console::print(format_args!(" x{:<2} {value:016x}", row * 4 + column));
        }
        console::print(format_args!("\n"));
    }
    let [.., link_frame, _] = frame.x;
    backtrace(frame.elr, link_frame);
    stop()
}

#[panic_handler]
fn panic(info: &PanicInfo) -> ! {
    let frame: u64;
    // SAFETY: reads the frame pointer.
    unsafe { core::arch::asm!("mov {}, x29", out(reg) frame, options(nomem, nostack)) };
    begin();
    console::print(format_args!(
        "\nEL2 PANIC: cpu{}: {}\n",
        cpu::this().index,
        info.message()
    ));
    if let Some(place) = info.location() {
        console::print(format_args!("  at {}:{}\n", place.file(), place.line()));
    }
    backtrace(panic as *const () as u64, frame);
    stop()
}
