//! The second CPU: started by PSCI, it executes one command at a time and handles interrupts in between.

use core::arch::asm;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use aarch64_rt::{Stack, start_core};
use arm_gic::gicv3::{GicCpuInterface, SgiTarget, SgiTargetGroup};
use arm_gic::{IntId, wfi};
use smccc::Hvc;
use smccc::psci;
use spin::Mutex;

use crate::{affinity, interrupts, time};

/// The SGI that wakes the second CPU.
pub const WAKE: u32 = 15;

/// A command for the second CPU.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Command {
    /// Wait.
    None = 0,
    /// PSCI CPU_OFF.
    Off = 1,
    /// Send SGI 5 to CPU 0.
    SendSgi = 2,
    /// Let the virtual timer expire at once.
    Timer = 3,
    /// Run the function given to [`run_task`].
    Task = 4,
    /// Load from the address of [`load`].
    Load = 5,
}

static COMMAND: AtomicU32 = AtomicU32::new(0);
/// Number of times that the second CPU has come up.
static STARTS: AtomicU32 = AtomicU32::new(0);
static MPIDR: AtomicU64 = AtomicU64::new(0);

/// Address of [`Command::Load`], the value loaded, and the number of loads.
static ADDRESS: AtomicU64 = AtomicU64::new(0);
static LOADED: AtomicU64 = AtomicU64::new(0);
static LOADS: AtomicU32 = AtomicU32::new(0);

/// The function that [`Command::Task`] runs.
static TASK: Mutex<fn()> = Mutex::new(|| {});

static mut STACK: Stack<8> = Stack::new();

/// Returns the number of times that the second CPU has come up.
pub fn starts() -> u32 {
    STARTS.load(Ordering::SeqCst)
}

/// Returns the MPIDR that the second CPU read of itself.
pub fn seen_mpidr() -> u64 {
    MPIDR.load(Ordering::SeqCst)
}

/// Starts the CPU with this MPIDR as the second CPU.
pub fn start(mpidr: u64) -> Result<(), psci::Error> {
    COMMAND.store(Command::None as u32, Ordering::SeqCst);
    // SAFETY: only the second CPU uses the stack, and there is one: PSCI refuses to start it twice.
    unsafe { start_core::<Hvc, _, 8>(mpidr, &raw mut STACK, serve) }
}

/// Returns whether a CPU is off according to PSCI.
pub fn is_off(mpidr: u64) -> bool {
    let level = psci::LowestAffinityLevel::All;
    psci::affinity_info::<Hvc>(mpidr, level) == Ok(psci::AffinityState::Off)
}

/// Starts the second CPU if it is not on. Returns whether it is on.
pub fn ensure_on(mpidr: u64) -> bool {
    let before = starts();
    match start(mpidr) {
        Ok(()) => time::wait(2000, || starts() > before),
        Err(psci::Error::AlreadyOn) => true,
        Err(_) => false,
    }
}

/// A load by the second CPU.
pub struct Load {
    before: u32,
}

impl Load {
    /// Returns the value loaded, once it is there.
    pub fn value(&self) -> Option<u64> {
        (LOADS.load(Ordering::SeqCst) != self.before).then(|| LOADED.load(Ordering::SeqCst))
    }
}

/// Makes the second CPU load 8 bytes from an address that is mapped.
pub fn load(address: u64) -> Load {
    let before = LOADS.load(Ordering::SeqCst);
    ADDRESS.store(address, Ordering::SeqCst);
    send(Command::Load);
    Load { before }
}

/// Makes the second CPU run `task`, with interrupts enabled, until it returns.
pub fn run_task(task: fn()) {
    *TASK.lock() = task;
    send(Command::Task);
}

/// Sends a command to the second CPU.
pub fn send(command: Command) {
    COMMAND.store(command as u32, Ordering::SeqCst);
    let target = SgiTarget::List {
        affinity3: 0,
        affinity2: 0,
        affinity1: 0,
        target_list: 1 << 1,
    };
    let _ = GicCpuInterface::send_sgi(IntId::sgi(WAKE), target, SgiTargetGroup::CurrentGroup1);
}

/// Executes commands on the second CPU and waits for interrupts in between.
fn serve() {
    GicCpuInterface::enable_system_register_el1();
    GicCpuInterface::set_priority_mask(0xff);
    GicCpuInterface::enable_group1(true);
    MPIDR.store(affinity::mpidr(), Ordering::SeqCst);
    STARTS.fetch_add(1, Ordering::SeqCst);
    loop {
        // Disabled during the check, so that a wake-up in between ends the wait.
        interrupts::disable();
        match COMMAND.swap(Command::None as u32, Ordering::SeqCst) {
            command if command == Command::Off as u32 => {
                let _ = psci::cpu_off::<Hvc>();
            }
            command if command == Command::SendSgi as u32 => {
                let target = SgiTarget::List {
                    affinity3: 0,
                    affinity2: 0,
                    affinity1: 0,
                    target_list: 1,
                };
                let _ = GicCpuInterface::send_sgi(IntId::sgi(5), target, SgiTargetGroup::CurrentGroup1);
            }
            command if command == Command::Timer as u32 => {
                // SAFETY: this CPU's virtual timer; its interrupt's hook masks it again.
                unsafe { asm!("msr cntv_tval_el0, xzr", "msr cntv_ctl_el0, {}", "isb", in(reg) 1_u64) };
            }
            command if command == Command::Task as u32 => {
                interrupts::enable();
                let task = *TASK.lock();
                task();
            }
            command if command == Command::Load as u32 => {
                let value: u64;
                let address = ADDRESS.load(Ordering::SeqCst);
                // SAFETY: reads what the caller of `load` has mapped.
                unsafe { asm!("ldr {}, [{}]", out(reg) value, in(reg) address, options(nostack, readonly)) };
                LOADED.store(value, Ordering::SeqCst);
                LOADS.fetch_add(1, Ordering::SeqCst);
            }
            _ => wfi(),
        }
        interrupts::enable();
    }
}
