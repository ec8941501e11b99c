//! The physical CPUs: who owns each, which vCPU it runs, and what other CPUs order it to do.
//!
//! An order is a request bit; the CPU that sets it then kicks the target (`gic::kick`). The target checks
//! its requests before every entry into a guest and in the idle loop (`run`); the giver does not wait.

pub mod counters;

use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use ringvisor::abi::info::{CpuInfo, OWNER_NONE};
use ringvisor::abi::{MAX_CPUS, ROOT_ZONE};
use ringvisor::psci::Mpidr;

use super::arch::boot::SecondaryContext;
use super::arch::frame::{TrapFrame, frame_address};
use super::arch::{self, sysreg};
use counters::Counters;

/// Start the vCPU whose entry point is in [`Cpu::start_arguments`].
const START: u32 = 1;
/// Leave the guest and become idle.
const STOP: u32 = 2;

/// How many TLB maintenance instructions of a vCPU trap before the trap is disabled. Linux 6.12 executes some
/// 50 000 in a guest before it starts a second CPU, and 90 000 in root.
const TLBI_TRAPS: u32 = 1 << 17;

/// What a CPU is doing; the values are those of `CpuInfo::running`.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// Idles at EL2.
    Parked = 0,
    /// Runs a vCPU.
    Running = 1,
    /// Stopped for good after a panic.
    Dead = 2,
    /// Has not come up at EL2.
    Absent = 3,
}

/// What another CPU has ordered, as [`Cpu::take_order`] returns it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Leave the vCPU and idle. Overrides a start.
    Stop,
    /// Start the owner's vCPU.
    Start,
}

/// What EL2 remembers of a CPU's list registers; used by that CPU only.
#[derive(Debug)]
pub struct ListState {
    /// Number of list registers (ICH_VTR_EL2.ListRegs + 1); 0 before the GIC's CPU interface is initialised.
    pub count: AtomicUsize,
    /// Those that are not empty, a bit for each.
    pub used: AtomicU32,
}

/// One physical CPU.
pub struct Cpu {
    /// Position in the device tree.
    pub index: usize,
    mpidr: AtomicU64,
    stack: AtomicUsize,
    state: AtomicU8,
    owner: AtomicU8,
    vcpu: AtomicU8,
    requests: AtomicU32,
    entry: AtomicU64,
    context: AtomicU64,
    /// The owner's state if that is a zone, else null. `zone` gives it its type.
    zone: AtomicPtr<()>,
    /// How many more TLB maintenance instructions trap, see [`Self::trap_tlbi`].
    tlbi: AtomicU32,
    /// Its list registers.
    pub list: ListState,
    /// Its counters and trace buffer; written by the CPU itself.
    pub counters: &'static Counters,
    /// The owner has not used the CPU yet: the counters restart.
    fresh: AtomicBool,
}

/// Apart from [`CPUS`], because they are zero at first and so take no room in the hypervisor binary.
static COUNTERS: [Counters; MAX_CPUS] = [const { Counters::new() }; MAX_CPUS];

static CPUS: [Cpu; MAX_CPUS] = {
    let mut index = 0;
    let mut cpus = [const { Cpu::new(0) }; MAX_CPUS];
    while index < MAX_CPUS {
        cpus[index] = Cpu::new(index);
        index += 1;
    }
    cpus
};
static COUNT: AtomicUsize = AtomicUsize::new(0);

impl Cpu {
    const fn new(index: usize) -> Self {
        Self {
            index,
            mpidr: AtomicU64::new(0),
            stack: AtomicUsize::new(0),
            state: AtomicU8::new(State::Absent as u8),
            owner: AtomicU8::new(OWNER_NONE),
            vcpu: AtomicU8::new(0),
            requests: AtomicU32::new(0),
            entry: AtomicU64::new(0),
            context: AtomicU64::new(0),
            zone: AtomicPtr::new(ptr::null_mut()),
            tlbi: AtomicU32::new(0),
            list: ListState {
                count: AtomicUsize::new(0),
                used: AtomicU32::new(0),
            },
            counters: &COUNTERS[index],
            fresh: AtomicBool::new(false),
        }
    }

    /// Returns its affinity.
    pub fn mpidr(&self) -> Mpidr {
        Mpidr::from_register(self.mpidr.load(Ordering::Relaxed))
    }

    /// Returns the number of the zone that owns it, or [`OWNER_NONE`].
    pub fn owner(&self) -> u8 {
        self.owner.load(Ordering::Acquire)
    }

    /// Returns the state of the zone that owns it; null for root and for no owner.
    pub fn zone(&self) -> *const () {
        self.zone.load(Ordering::Acquire)
    }

    /// Returns the number of its vCPU in the owning zone.
    pub fn vcpu(&self) -> usize {
        usize::from(self.vcpu.load(Ordering::Relaxed))
    }

    /// Returns whether it runs a vCPU.
    pub fn is_running(&self) -> bool {
        self.state.load(Ordering::Acquire) == State::Running as u8
    }

    /// Returns whether it has come up at EL2.
    pub fn is_present(&self) -> bool {
        self.state.load(Ordering::Acquire) != State::Absent as u8
    }

    /// Sets what it is doing.
    pub fn set_state(&self, state: State) {
        self.state.store(state as u8, Ordering::Release);
    }

    /// Claims an idle CPU that has no owner. Returns false if it is not available.
    pub fn claim(&self, owner: u8, vcpu: u8, zone: *mut ()) -> bool {
        if self.state.load(Ordering::Acquire) != State::Parked as u8 {
            return false;
        }
        if self
            .owner
            .compare_exchange(OWNER_NONE, owner, Ordering::AcqRel, Ordering::Relaxed)
            .is_err()
        {
            return false;
        }
        self.vcpu.store(vcpu, Ordering::Relaxed);
        self.fresh.store(true, Ordering::Relaxed);
        self.zone.store(zone, Ordering::Release);
        true
    }

    /// Takes the CPU from its owner. It must be idle, and stays so.
    pub fn release(&self) {
        self.zone.store(ptr::null_mut(), Ordering::Release);
        self.requests.store(0, Ordering::Release);
        self.owner.store(OWNER_NONE, Ordering::Release);
    }

    /// Orders an idle CPU to start its owner's vCPU at `entry` with `context` in x0. The caller kicks it.
    pub fn order_start(&self, entry: u64, context: u64) {
        self.entry.store(entry, Ordering::Relaxed);
        self.context.store(context, Ordering::Relaxed);
        self.requests.fetch_or(START, Ordering::AcqRel);
    }

    /// Orders it to leave the guest and idle. The caller kicks it.
    pub fn order_stop(&self) {
        self.requests.fetch_or(STOP, Ordering::AcqRel);
    }

    /// Returns whether a stop is ordered.
    pub fn is_stop_ordered(&self) -> bool {
        self.requests.load(Ordering::Acquire) & STOP != 0
    }

    /// Withdraws a stop: the vCPU has already left.
    pub fn withdraw_stop(&self) {
        self.requests.fetch_and(!STOP, Ordering::AcqRel);
    }

    /// Withdraws all orders: the vCPU has left for good. The caller holds the lock under which orders are
    /// given.
    pub fn withdraw_orders(&self) {
        self.requests.store(0, Ordering::Release);
    }

    /// On this CPU: takes what is ordered; a stop discards a start.
    pub fn take_order(&self) -> Option<Order> {
        match self.requests.swap(0, Ordering::AcqRel) {
            requests if requests & STOP != 0 => Some(Order::Stop),
            requests if requests & START != 0 => Some(Order::Start),
            _ => None,
        }
    }

    /// Returns entry point and x0 of the vCPU that [`Order::Start`] starts.
    pub fn start_arguments(&self) -> (u64, u64) {
        (
            self.entry.load(Ordering::Relaxed),
            self.context.load(Ordering::Relaxed),
        )
    }

    /// On this CPU: sets the counters to zero if the owner has not used the CPU before.
    pub fn restart_counters_if_fresh(&self) {
        if self.fresh.swap(false, Ordering::Relaxed) {
            self.counters.restart();
        }
    }

    /// On this CPU: enables or disables trapping of TLB maintenance from the next guest entry. Enabled while
    /// the vCPU is the only one of its zone that is on, so that EL2 can execute it without broadcast.
    pub fn trap_tlbi(&self, on: bool) {
        self.tlbi
            .store(if on { TLBI_TRAPS } else { 0 }, Ordering::Relaxed);
        arch::features::trap_tlbi(on);
    }

    /// On this CPU: counts a TLB maintenance instruction that trapped; disables the trap after
    /// [`TLBI_TRAPS`].
    pub fn count_tlbi(&self) {
        let left = self.tlbi.load(Ordering::Relaxed).saturating_sub(1);
        self.tlbi.store(left, Ordering::Relaxed);
        if left == 0 {
            arch::features::trap_tlbi(false);
        }
    }

    /// Returns its entry of the information page.
    pub fn info(&self) -> CpuInfo {
        CpuInfo {
            mpidr: self.mpidr().bits(),
            owner: self.owner(),
            running: self.state.load(Ordering::Acquire),
            vcpu: self.vcpu() as u8,
            reserved: [0; 5],
        }
    }

    /// Returns the address of the trap frame at the top of its stack.
    pub fn frame(&self) -> *mut TrapFrame {
        frame_address(self.stack.load(Ordering::Relaxed)) as *mut TrapFrame
    }
}

/// Returns all CPUs of the machine, in device-tree order.
pub fn all() -> &'static [Cpu] {
    CPUS.get(..COUNT.load(Ordering::Acquire)).unwrap_or(&[])
}

/// Returns the CPU with this affinity.
pub fn find(mpidr: Mpidr) -> Option<&'static Cpu> {
    all().iter().find(|cpu| cpu.mpidr() == mpidr)
}

/// Returns the CPU that executes this call; the first one before [`set_this`].
pub fn this() -> &'static Cpu {
    let pointer = sysreg::read!("tpidr_el2") as *const Cpu;
    // SAFETY: TPIDR_EL2 is zero until `set_this` sets it to an element of CPUS.
    unsafe { pointer.as_ref() }.unwrap_or(&CPUS[0])
}

/// Makes [`this`] return `cpu` on the CPU that executes this call.
pub fn set_this(cpu: &'static Cpu) {
    sysreg::write!("tpidr_el2", ptr::from_ref(cpu) as u64);
}

/// Registers the machine's CPUs in device-tree order; the caller, whose stack area is at `boot_area`, becomes
/// root's first vCPU.
pub fn init(mpidrs: impl Iterator<Item = u64>, boot_area: usize) {
    let own = Mpidr::from_register(sysreg::read!("mpidr_el1"));
    let mut count = 0;
    for (cpu, mpidr) in CPUS.iter().zip(mpidrs) {
        cpu.mpidr.store(mpidr, Ordering::Relaxed);
        count += 1;
        if Mpidr::from_register(mpidr) == own {
            cpu.stack.store(boot_area, Ordering::Relaxed);
            cpu.owner.store(ROOT_ZONE, Ordering::Relaxed);
            cpu.vcpu.store(cpu.index as u8, Ordering::Relaxed);
            cpu.set_state(State::Running);
            set_this(cpu);
        }
    }
    COUNT.store(count, Ordering::Release);
}

/// Returns what a secondary CPU loads when PSCI starts it, with its stack in the area at `area`.
pub fn secondary_context(cpu: &'static Cpu, area: usize, ttbr: u64) -> SecondaryContext {
    cpu.stack.store(area, Ordering::Relaxed);
    SecondaryContext {
        ttbr,
        tcr: arch::boot::tcr(),
        stack: cpu.frame() as u64,
        argument: ptr::from_ref(cpu) as u64,
    }
}
