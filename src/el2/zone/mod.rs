//! A zone that is not root: its vCPUs, memory, interrupt controller and devices.
//!
//! **Life of a vCPU.** Its physical CPU idles (`run::idle`) until [`Cpu::order_start`]; from the moment of
//! that order until [`Zone::vcpu_left`] the vCPU's bit is set in `inside`. Only then does its CPU access the
//! zone, so a zone with `inside == 0` may be destroyed. Bits are set and cleared under the lock of `core`.

use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

use arrayvec::ArrayVec;
use ringvisor::abi::command::{CommandStatus, ZoneCreate};
use ringvisor::abi::info::ZoneSummary;
use ringvisor::abi::trace::Kind;
use ringvisor::abi::{MAX_SLOTS, MAX_VCPUS, NAME_LEN, StopReason, ZoneState, machine};
use ringvisor::pl031::Rtc;
use ringvisor::pl061::Gpio;
use ringvisor::psci::cpus::CpuTable;
use ringvisor::ring::{Entry, Producer, Wakeup, ZoneWindow};
use ringvisor::stage2::Stage2;
use ringvisor::vgic::{FlushRequests, Line, Vgic};

use super::arch::{sysreg, vcpu};
use super::channel::{Refusal, function};
use super::cpu::Cpu;
use super::mm::frames::{FrameBox, Tables};
use super::stats;
use super::sync::Mutex;
use access::Uart;
use devices::Device;
use flash::Flash;

mod access;
mod devices;
mod flash;
mod memory;
mod owner;
pub mod registry;
mod vcpus;

/// What the lifecycle changes, under one lock.
struct Core {
    state: ZoneState,
    reason: StopReason,
    cpus: CpuTable<MAX_VCPUS>,
    /// ESR, ELR, FAR of a crash.
    fault: [u64; 3],
    /// Generic counter at the beginning of the pause, in ticks.
    paused_at: u64,
}

impl Core {
    /// Returns whether the zone is off: not started yet, stopped or crashed.
    fn is_off(&self) -> bool {
        matches!(
            self.state,
            ZoneState::Created | ZoneState::Stopped | ZoneState::Crashed
        )
    }
}

/// One zone.
pub struct Zone {
    number: u8,
    name: [u8; NAME_LEN],
    cpus: ArrayVec<&'static Cpu, MAX_VCPUS>,
    core: Mutex<Core>,
    /// Copies of what is in `core`, for readers without the lock.
    state: AtomicU8,
    reason: AtomicU8,
    generation: AtomicU32,
    /// `None` once the zone is being destroyed.
    stage2: Mutex<Option<Stage2>>,
    /// The stage 2 of a zone that is being destroyed.
    reclaiming: Mutex<Option<Stage2>>,
    vttbr: u64,
    /// Number of 2 MiB blocks of RAM, contiguous from [`machine::RAM_BASE`].
    blocks: AtomicU64,
    gic: Mutex<Vgic>,
    flush_requests: FlushRequests,
    /// By SPI, counted from the first: levels that devices latch and that `gic` has yet to see.
    lines: [Line; machine::SPI_COUNT as usize],
    slots: [Mutex<Option<FrameBox<Device>>>; MAX_SLOTS],
    uart: Mutex<Uart>,
    rtc: Mutex<Rtc>,
    gpio: Mutex<Gpio>,
    /// Of a zone with firmware.
    flash: Mutex<Option<FrameBox<Flash>>>,
    window: &'static ZoneWindow,
    producer: Producer,
    /// vCPUs whose CPU may access the zone, a bit for each.
    inside: AtomicU32,
    pausing: AtomicBool,
    /// vCPUs that wait at EL2 during a pause, a bit for each.
    paused: AtomicU32,
    counter_offset: AtomicU64,
    aborts: AtomicU32,
    calls_refused: AtomicU32,
    counters: stats::Devices,
}

impl Zone {
    /// Returns the zone whose state `cpu` refers to, or `None` if its owner is root or it has none. The
    /// caller runs on `cpu` while the vCPU's bit is set in `inside`.
    pub fn of(cpu: &Cpu) -> Option<&'static Self> {
        // SAFETY: `registry::create` gave `Cpu::claim` a pointer to a zone, and a zone is destroyed only
        // while no vCPU is inside and after each of its CPUs was released.
        unsafe { cpu.zone().cast::<Self>().as_ref() }
    }

    /// Builds a zone in frames of its own. On failure everything that was passed is freed.
    fn build(
        number: u8,
        request: &ZoneCreate,
        cpus: ArrayVec<&'static Cpu, MAX_VCPUS>,
        gic: Vgic,
        stage2: Stage2,
        window: &'static ZoneWindow,
    ) -> Result<FrameBox<Self>, Refusal> {
        let Some(place) = FrameBox::reserve() else {
            stage2.destroy(&mut Tables);
            return Err((CommandStatus::OutOfMemory, FrameBox::<Self>::PAGES as u64));
        };
        let vttbr = vcpu::vttbr(stage2.root(), number);
        Ok(place.fill(Self {
            number,
            name: request.name,
            cpus,
            core: Mutex::new(Core {
                state: ZoneState::Created,
                reason: StopReason::None,
                cpus: CpuTable::guest(request.vcpus as usize),
                fault: [0; 3],
                paused_at: 0,
            }),
            state: AtomicU8::new(ZoneState::Created as u8),
            reason: AtomicU8::new(StopReason::None as u8),
            generation: AtomicU32::new(1),
            stage2: Mutex::new(Some(stage2)),
            reclaiming: Mutex::new(None),
            vttbr,
            blocks: AtomicU64::new(0),
            gic: Mutex::new(gic),
            flush_requests: FlushRequests::new(),
            lines: [const { Line::new() }; machine::SPI_COUNT as usize],
            slots: [const { Mutex::new(None) }; MAX_SLOTS],
            uart: Mutex::new(Uart::new()),
            rtc: Mutex::new(Rtc::new(request.epoch_seconds, seconds())),
            gpio: Mutex::new(Gpio::new()),
            flash: Mutex::new(None),
            window,
            producer: Producer::new(),
            inside: AtomicU32::new(0),
            pausing: AtomicBool::new(false),
            paused: AtomicU32::new(0),
            counter_offset: AtomicU64::new(0),
            aborts: AtomicU32::new(0),
            calls_refused: AtomicU32::new(0),
            counters: stats::Devices::new(),
        }))
    }

    /// Returns its name, or "?" if that is not UTF-8.
    pub fn name(&self) -> &str {
        let len = self.name.iter().position(|&byte| byte == 0).unwrap_or(NAME_LEN);
        self.name
            .get(..len)
            .and_then(|name| core::str::from_utf8(name).ok())
            .unwrap_or("?")
    }

    /// Sends an event to the daemon.
    fn send_event(&self, entry: Entry) {
        if self.add_event(entry) == Some(Wakeup::Required) {
            function::assert_intx();
        }
    }

    /// Adds an event to the zone's ring. On [`Wakeup::Required`] the caller has to wake the daemon. Returns
    /// `None` if the same event is still pending.
    fn add_event(&self, entry: Entry) -> Option<Wakeup> {
        if let Entry::Notify { slot, queue } = entry {
            self.window.stamp_notification(slot, queue, stats::now());
        }
        let wakeup = self.producer.offer(&self.window.ring(), entry);
        if let (Some(_), Entry::Notify { slot, queue }) = (wakeup, entry) {
            stats::record(Kind::Ring, self.number, slot, queue, 0);
        }
        wakeup
    }

    /// Returns how many entries were ever added to the ring.
    pub fn ring_head(&self) -> u64 {
        self.producer.head()
    }

    fn set_state(&self, core: &mut Core, state: ZoneState, reason: StopReason) {
        core.state = state;
        core.reason = reason;
        self.state.store(state as u8, Ordering::Release);
        self.reason.store(reason as u8, Ordering::Relaxed);
        self.generation.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns what the information page shows of it.
    fn summary(&self) -> ZoneSummary {
        ZoneSummary {
            state: self.state.load(Ordering::Acquire),
            reason: self.reason.load(Ordering::Relaxed),
            vcpus: self.cpus.len() as u8,
            vcpus_on: self.inside.load(Ordering::Relaxed).count_ones() as u8,
            generation: self.generation.load(Ordering::Relaxed),
            pages: 0,
            aborts: self.aborts.load(Ordering::Relaxed),
        }
    }
}

/// Returns the seconds since the machine started.
fn seconds() -> u64 {
    sysreg::read!("cntpct_el0") / sysreg::read!("cntfrq_el0").max(1)
}
