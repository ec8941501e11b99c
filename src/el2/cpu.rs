//! The physical CPUs: who owns each, what it is asked to do, and the idle loop in which a CPU without a running
//! vCPU waits at EL2.
//!
//! A CPU is asked through its request bits and a kick (an SGI of EL2's own). Requests are looked at before every
//! return to a guest and in the idle loop; nobody waits for their effect.

use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use ringvisor::abi::info::{CpuInfo, OWNER_NONE};
use ringvisor::abi::{MAX_CPUS, ROOT_ZONE};
use ringvisor::psci::Mpidr;

use super::arch::boot::SecondaryContext;
use super::arch::vectors::{STACK_SHIFT, TrapFrame};
use super::arch::{self, sysreg, vcpu};
use super::stats::Counters;
use super::{control, gic, root, zone};

/// Start the vCPU whose entry is in [`Cpu::start`].
const START: u32 = 1;
/// Leave the guest and become idle.
const STOP: u32 = 2;

/// How much TLB maintenance of a vCPU traps. Linux 6.12 does some 50 000 in a guest before it starts a second CPU, and 90 000 in
/// root.
const TLBI_TRAPS: u32 = 1 << 17;

/// What a CPU is doing, as `CpuInfo::running` gives it.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum State {
    Parked = 0,
    Running = 1,
    Dead = 2,
    Absent = 3,
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
    zone: AtomicPtr<zone::Zone>,
    /// How much more TLB maintenance of its vCPU traps, see [`Self::trap_tlbi`].
    tlbi: AtomicU32,
    /// Its list registers.
    pub list: gic::ListState,
    /// What it counts; written by the CPU itself.
    pub counters: &'static Counters,
    /// It has an owner that has not used it yet: the counters begin anew.
    fresh: AtomicBool,
}

/// Apart from [`CPUS`], because they are zero at first and take no room in the image.
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
            list: gic::ListState::new(),
            counters: &COUNTERS[index],
            fresh: AtomicBool::new(false),
        }
    }

    /// Affinity.
    pub fn mpidr(&self) -> Mpidr {
        Mpidr::from_register(self.mpidr.load(Ordering::Relaxed))
    }

    /// Zone number that holds it, or [`OWNER_NONE`].
    pub fn owner(&self) -> u8 {
        self.owner.load(Ordering::Acquire)
    }

    /// vCPU number in its zone.
    pub fn vcpu(&self) -> usize {
        usize::from(self.vcpu.load(Ordering::Relaxed))
    }

    /// 0 parked, 1 running a vCPU, 2 dead.
    pub fn state(&self) -> u8 {
        self.state.load(Ordering::Acquire)
    }

    /// Whether it has come up at EL2.
    pub fn is_here(&self) -> bool {
        self.state() != State::Absent as u8
    }

    fn set_state(&self, state: State) {
        self.state.store(state as u8, Ordering::Release);
    }

    /// It will run nothing any more.
    pub fn mark_dead(&self) {
        self.set_state(State::Dead);
    }

    /// Takes a CPU that nobody owns and that idles; false if it is not to be had.
    pub fn claim(&self, owner: u8, vcpu: u8, zone: *mut zone::Zone) -> bool {
        if self.state() != State::Parked as u8 {
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

    /// Nobody owns it any more. It must be idle, and stays so.
    pub fn release(&self) {
        self.zone.store(ptr::null_mut(), Ordering::Release);
        self.requests.store(0, Ordering::Release);
        self.owner.store(OWNER_NONE, Ordering::Release);
    }

    /// Orders an idle CPU to start its owner's vCPU at `entry` with `context` in x0.
    pub fn start(&self, entry: u64, context: u64) {
        self.entry.store(entry, Ordering::Relaxed);
        self.context.store(context, Ordering::Relaxed);
        self.requests.fetch_or(START, Ordering::AcqRel);
        gic::kick(self);
    }

    /// Orders it to leave the guest and idle.
    pub fn stop(&self) {
        self.requests.fetch_or(STOP, Ordering::AcqRel);
        gic::kick(self);
    }

    /// A stop that is still asked for is done with: the vCPU has left.
    pub fn forget_stop(&self) {
        self.requests.fetch_and(!STOP, Ordering::AcqRel);
    }

    /// The vCPU has left for good: it is not to be started any more either. Under the lock under which orders are given.
    pub fn forget_orders(&self) {
        self.requests.store(0, Ordering::Release);
    }

    /// On this CPU: TLB maintenance of its vCPU, which is the only one of its zone, traps from the next return to it, or does
    /// not. What a kernel does at boot traps; a vCPU that stays alone shall not pay for it all its life.
    pub fn trap_tlbi(&self, on: bool) {
        self.tlbi
            .store(if on { TLBI_TRAPS } else { 0 }, Ordering::Relaxed);
        arch::features::trap_tlbi(on);
    }

    /// On this CPU: one has trapped.
    pub fn tlbi_trapped(&self) {
        let left = self.tlbi.load(Ordering::Relaxed).saturating_sub(1);
        self.tlbi.store(left, Ordering::Relaxed);
        if left == 0 {
            arch::features::trap_tlbi(false);
        }
    }

    /// As the information page has it.
    pub fn info(&self) -> CpuInfo {
        CpuInfo {
            mpidr: self.mpidr().bits(),
            owner: self.owner(),
            running: self.state(),
            vcpu: self.vcpu() as u8,
            reserved: [0; 5],
        }
    }

    /// Stack area of this CPU.
    fn area(&self) -> usize {
        self.stack.load(Ordering::Relaxed)
    }

    /// Top of its stack, where the trap frame lies.
    fn frame(&self) -> *mut TrapFrame {
        (self.area() + (2 << STACK_SHIFT) - size_of::<TrapFrame>()) as *mut TrapFrame
    }

    fn zone_ref(&self) -> Option<&zone::Zone> {
        // SAFETY: a zone outlives its CPUs' ownership: it is destroyed only after each of them was released.
        unsafe { self.zone.load(Ordering::Acquire).as_ref() }
    }
}

/// All CPUs of the machine.
pub fn all() -> &'static [Cpu] {
    CPUS.get(..COUNT.load(Ordering::Acquire)).unwrap_or(&[])
}

/// The CPU with this affinity.
pub fn find(mpidr: Mpidr) -> Option<&'static Cpu> {
    all().iter().find(|cpu| cpu.mpidr() == mpidr)
}

/// The CPU that runs this.
pub fn this() -> &'static Cpu {
    let pointer = sysreg::read!("tpidr_el2") as *const Cpu;
    // SAFETY: TPIDR_EL2 is zero until `init` or `enter_secondary` sets it to an element of CPUS.
    unsafe { pointer.as_ref() }.unwrap_or(&CPUS[0])
}

/// The zone whose vCPU this CPU runs; `None` if that is root, or if it idles.
pub fn this_zone() -> Option<&'static zone::Zone> {
    let cpu = this();
    if cpu.state() == State::Running as u8 {
        cpu.zone_ref()
    } else {
        None
    }
}

/// Takes down the CPUs of the machine, in the order of the device tree; `boot` is this one, and root's first.
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
            sysreg::write!("tpidr_el2", ptr::from_ref(cpu) as u64);
        }
    }
    COUNT.store(count, Ordering::Release);
}

/// What a CPU that PSCI starts is given; must stay in place until it has entered.
pub fn secondary_context(cpu: &'static Cpu, area: usize, ttbr: u64) -> SecondaryContext {
    cpu.stack.store(area, Ordering::Relaxed);
    SecondaryContext {
        ttbr,
        tcr: arch::boot::tcr(),
        stack: cpu.frame() as u64,
        argument: ptr::from_ref(cpu) as u64,
    }
}

/// Per-CPU set-up of a secondary CPU, which then idles.
pub fn enter_secondary(cpu: &'static Cpu, vtcr: u64) -> ! {
    sysreg::write!("tpidr_el2", ptr::from_ref(cpu) as u64);
    arch::vectors::install();
    arch::features::configure(vtcr);
    arch::tlbi_alle1();
    gic::init_cpu(cpu);
    cpu.set_state(State::Parked);
    idle()
}

/// Starts root's first vCPU on the boot CPU.
pub fn enter_root(entry: u64, context: u64) -> ! {
    if !root::prepare_vcpu(this(), true) {
        idle()
    }
    enter(entry, context)
}

/// Root has turned this CPU off: nobody owns it from here on.
pub fn retire() -> ! {
    let cpu = this();
    gic::clear_list_registers();
    gic::reset_private(cpu, 0);
    cpu.set_state(State::Parked);
    cpu.release();
    control::refresh();
    idle()
}

/// The vCPU of this CPU has turned itself off: it leaves the zone, and its CPU idles.
pub fn leave(zone: &zone::Zone) -> ! {
    let cpu = this();
    cpu.set_state(State::Parked);
    zone.vcpu_left(cpu.vcpu());
    idle()
}

/// The vCPU of this CPU is off: waits for the order to start it or, once released, another. The stack begins anew: a
/// vCPU may be told to leave before it has entered its guest, any number of times.
pub fn idle() -> ! {
    // SAFETY: the frame is this CPU's own; callers hold nothing that is to be dropped, for they never return either.
    unsafe { arch::vectors::restart(this().frame(), wait_for_orders) }
}

extern "C" fn wait_for_orders() -> ! {
    let cpu = this();
    gic::clear_list_registers();
    cpu.set_state(State::Parked);
    loop {
        let requests = cpu.requests.swap(0, Ordering::AcqRel);
        if requests & STOP != 0 {
            if let Some(zone) = cpu.zone_ref() {
                zone.vcpu_left(cpu.vcpu());
            }
            control::refresh();
        } else if requests & START != 0 {
            start(cpu);
        }
        arch::wfi();
        gic::handle_interrupts();
    }
}

fn start(cpu: &'static Cpu) -> ! {
    if cpu.fresh.swap(false, Ordering::Relaxed) {
        cpu.counters.restart();
    }
    let wanted = match cpu.zone_ref() {
        Some(zone) => zone.prepare_vcpu(cpu.vcpu()),
        None => cpu.owner() == ROOT_ZONE && root::prepare_vcpu(cpu, false),
    };
    if !wanted {
        idle()
    }
    cpu.set_state(State::Running);
    control::refresh();
    enter(
        cpu.entry.load(Ordering::Relaxed),
        cpu.context.load(Ordering::Relaxed),
    )
}

fn enter(entry: u64, context: u64) -> ! {
    let frame = this().frame();
    // SAFETY: the frame is above every Rust frame of this CPU's stack: boot, secondaries and vectors start below it.
    unsafe {
        frame.write(vcpu::fresh_frame(entry, context));
        before_return();
        arch::vectors::enter(frame)
    }
}

/// What every return to a lower level passes: requests, pauses, and list registers out of date. False if the CPU waited
/// out a pause here.
pub fn before_return() -> bool {
    let cpu = this();
    let mut waited = false;
    if let Some(zone) = cpu.zone_ref() {
        loop {
            if cpu.requests.load(Ordering::Acquire) & STOP != 0 {
                idle()
            }
            if !zone.pausing() && zone.vcpu_continues(cpu.vcpu()) {
                break;
            }
            waited = true;
            zone.vcpu_paused(cpu.vcpu());
            arch::wfi();
            gic::handle_interrupts();
        }
        zone.flush_interrupts(cpu.vcpu());
    } else {
        root::flush_interrupts(cpu);
    }
    !waited
}
