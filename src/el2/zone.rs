//! A zone that is not root: its vCPUs, memory, interrupt controller and devices.
//!
//! **Life of a vCPU.** Its physical CPU idles (`cpu::idle`) until [`cpu::Cpu::start`]; from the moment that order is
//! given until [`Zone::vcpu_left`] the vCPU's bit is set in `inside`. Only then does its CPU touch the zone, so a zone
//! with `inside == 0` may be destroyed. Bits are set and cleared under the lock of `core`.

use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

use arrayvec::ArrayVec;
use log::{info, warn};
use ringvisor::abi::command::{CommandStatus, DeviceSpec, ZoneCreate, ZoneInfo};
use ringvisor::abi::counters::{CpuEvent, DeviceEvent};
use ringvisor::abi::info::ZoneSummary;
use ringvisor::abi::trace::Kind;
use ringvisor::abi::{MAX_SLOTS, MAX_VCPUS, MAX_ZONES, NAME_LEN, ROOT_ZONE, StopReason, ZoneState, machine};
use ringvisor::addr::{BLOCK_SIZE, Ipa, PAGE_SIZE, Pa};
use ringvisor::pl031::Rtc;
use ringvisor::psci::Mpidr;
use ringvisor::psci::cpus::CpuTable;
use ringvisor::ring::ZoneWindow;
use ringvisor::ring::{Entry, Producer, Wakeup};
use ringvisor::stage2::{Access, Stage2};
use ringvisor::vgic::{FlushRequests, Kicks, Line, SgiRequest, Vgic};
use ringvisor::virtio::{Effect, GuestRam, Spec, Transport};

use super::arch::{self, sysreg, vcpu};
use super::control::{self, Refusal};
use super::cpu::{self, Cpu};
use super::device::Device;
use super::gic;
use super::mm::blocks;
use super::mm::frames::{FrameBox, Tables};
use super::sync::{Mutex, RwLock, RwLockWriteGuard};
use super::{root, stats};

mod access;
mod call;
mod devices;
mod uart;
mod vcpus;

use uart::Uart;

/// The PPIs that hardware raises for a guest: its two timers.
const TIMERS: u32 = 1 << machine::VIRTUAL_TIMER | 1 << machine::PHYSICAL_TIMER;

/// What the lifecycle changes, under one lock.
struct Core {
    state: ZoneState,
    reason: StopReason,
    cpus: CpuTable<MAX_VCPUS>,
    /// ESR, ELR, FAR of a crash.
    fault: [u64; 3],
    /// Counter when the pause began.
    paused_at: u64,
}

/// One zone.
pub struct Zone {
    number: u8,
    name: [u8; NAME_LEN],
    cpus: ArrayVec<&'static Cpu, MAX_VCPUS>,
    core: Mutex<Core>,
    /// Mirrors of `core` for readers without the lock.
    state: AtomicU8,
    reason: AtomicU8,
    generation: AtomicU32,
    /// `None` only while the zone is dissolved.
    stage2: Mutex<Option<Stage2>>,
    vttbr: u64,
    /// 2 MiB blocks of RAM, contiguous from [`machine::RAM_BASE`].
    blocks: AtomicU64,
    gic: Mutex<Vgic>,
    flush_requests: FlushRequests,
    /// By SPI, counted from the first: what devices say, for `gic` to follow.
    lines: [Line; machine::SPI_COUNT as usize],
    slots: [Mutex<Option<FrameBox<Device>>>; MAX_SLOTS],
    uart: Mutex<Uart>,
    rtc: Mutex<Rtc>,
    window: &'static ZoneWindow,
    producer: Producer,
    inside: AtomicU32,
    pausing: AtomicBool,
    paused: AtomicU32,
    counter_offset: AtomicU64,
    aborts: AtomicU32,
    calls_refused: AtomicU32,
    counters: stats::Devices,
}

static ZONES: [RwLock<Option<FrameBox<Zone>>>; MAX_ZONES] = [const { RwLock::new(None) }; MAX_ZONES];

/// Calls `f` on the zone with this number, if there is one; the zone cannot be destroyed meanwhile.
pub fn with<T>(number: u8, f: impl FnOnce(&Zone) -> T) -> Option<T> {
    let guard = ZONES.get(usize::from(number))?.read();
    guard.as_ref().map(|zone| f(zone))
}

/// Zones besides root.
pub fn count() -> usize {
    ZONES.iter().filter(|zone| zone.read().is_some()).count()
}

/// What the information page says of a zone.
pub fn summary(number: u8) -> ZoneSummary {
    if number == ROOT_ZONE {
        return root::summary();
    }
    // A zone that is being destroyed right now counts as gone.
    let guard = ZONES.get(usize::from(number)).and_then(RwLock::try_read);
    let Some(zone) = guard.as_ref().and_then(|guard| guard.as_ref()) else {
        return ZoneSummary::default();
    };
    ZoneSummary {
        state: zone.state.load(Ordering::Acquire),
        reason: zone.reason.load(Ordering::Relaxed),
        vcpus: zone.cpus.len() as u8,
        vcpus_on: zone.inside.load(Ordering::Relaxed).count_ones() as u8,
        generation: zone.generation.load(Ordering::Relaxed),
        pages: 0,
        aborts: zone.aborts.load(Ordering::Relaxed),
    }
}

/// Creates a zone and takes its CPUs.
pub fn create(request: &ZoneCreate) -> Result<u8, Refusal> {
    let vcpus = request.vcpus as usize;
    let wanted = request.cpus.get(..vcpus).filter(|cpus| !cpus.is_empty());
    let wanted = wanted.ok_or((CommandStatus::BadArgument, vcpus as u64))?;
    // Commands are serialized, so a free number stays free.
    let number = (1..MAX_ZONES).find(|&number| ZONES[number].read().is_none());
    let number = number.ok_or((CommandStatus::TooManyZones, MAX_ZONES as u64 - 1))? as u8;
    let window = control::window(number).ok_or((CommandStatus::NotAttached, 0))?;

    let mut cpus = ArrayVec::new();
    for &mpidr in wanted {
        let cpu = Mpidr::from_argument(mpidr)
            .and_then(cpu::find)
            .ok_or((CommandStatus::NoSuchCpu, mpidr))?;
        cpus.push(cpu);
    }
    let affinities: ArrayVec<u32, MAX_VCPUS> =
        (0..vcpus).map(|vcpu| machine::vcpu_mpidr(vcpu) as u32).collect();
    let gic = Vgic::new(&affinities, machine::SPI_COUNT).map_err(|_| (CommandStatus::OutOfMemory, 1))?;
    let stage2 = Stage2::new(&mut Tables, super::ipa_bits()).ok_or((CommandStatus::OutOfMemory, 2))?;
    let zone = Zone::build(number, request, cpus, gic, stage2, window)?;
    let pointer = core::ptr::from_ref::<Zone>(&zone).cast_mut();
    for (vcpu, cpu) in zone.cpus.iter().enumerate() {
        if !cpu.claim(number, vcpu as u8, pointer) {
            zone.cpus.iter().take(vcpu).for_each(|cpu| cpu.release());
            let mpidr = cpu.mpidr().bits();
            dissolve(zone);
            return Err((CommandStatus::CpuBusy, mpidr));
        }
    }
    window.clear();
    zone.counters.restart_all(number);
    info!("zone {number} \"{}\" created with {vcpus} vCPUs", zone.name());
    *change(&ZONES[usize::from(number)]) = Some(zone);
    Ok(number)
}

/// For writing; unlike `write`, this keeps new readers out while it waits for those that are there.
fn change(place: &RwLock<Option<FrameBox<Zone>>>) -> RwLockWriteGuard<'_, Option<FrameBox<Zone>>> {
    place.upgradeable_read().upgrade()
}

/// Destroys a zone that does not run; CPUs and memory are free again.
pub fn destroy(number: u8) -> Result<(), Refusal> {
    let no_such_zone = (CommandStatus::NoSuchZone, u64::from(number));
    let place = ZONES.get(usize::from(number)).ok_or(no_such_zone)?;
    let mut guard = change(place);
    let zone = guard.as_ref().ok_or(no_such_zone)?;
    {
        let core = zone.core.lock();
        let at_rest = matches!(
            core.state,
            ZoneState::Created | ZoneState::Stopped | ZoneState::Crashed
        );
        if !at_rest || zone.inside.load(Ordering::Acquire) != 0 {
            return Err((CommandStatus::WrongState, core.state as u64));
        }
    }
    let zone = guard.take();
    // Doorbells for this number need not wait for what follows; commands are serialized.
    drop(guard);
    if let Some(zone) = zone {
        info!("zone {number} \"{}\" destroyed", zone.name());
        zone.cpus.iter().for_each(|cpu| cpu.release());
        dissolve(zone);
    }
    Ok(())
}

/// The zone's RAM, for the transport's checks.
struct Ram(u64);

impl GuestRam for Ram {
    fn contains(&self, start: Ipa, len: u64) -> bool {
        let end = start.checked_add(len);
        start.0 >= machine::RAM_BASE && end.is_some_and(|end| end.0 <= machine::RAM_BASE + self.0)
    }
}

impl Zone {
    /// In frames of its own. On failure everything handed in is freed.
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
            vttbr,
            blocks: AtomicU64::new(0),
            gic: Mutex::new(gic),
            flush_requests: FlushRequests::new(),
            lines: [const { Line::new() }; machine::SPI_COUNT as usize],
            slots: [const { Mutex::new(None) }; MAX_SLOTS],
            uart: Mutex::new(Uart::new()),
            rtc: Mutex::new(Rtc::new(request.epoch_seconds, seconds())),
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

    /// Its name, as far as it is UTF-8.
    pub fn name(&self) -> &str {
        let len = self.name.iter().position(|&byte| byte == 0).unwrap_or(NAME_LEN);
        self.name
            .get(..len)
            .and_then(|name| core::str::from_utf8(name).ok())
            .unwrap_or("?")
    }

    fn ram(&self) -> Ram {
        Ram(self.blocks.load(Ordering::Acquire) * BLOCK_SIZE)
    }

    /// Tells the daemon.
    fn tell(&self, entry: Entry) {
        if self.offer(entry) == Some(Wakeup::Required) {
            control::ring_bell();
        }
    }

    /// Puts an entry on the ring; who gets [`Wakeup::Required`] has to ring. `None` if the daemon had been told and has not looked
    /// yet.
    fn offer(&self, entry: Entry) -> Option<Wakeup> {
        if let Entry::Notify { slot, queue } = entry {
            self.window.stamp_notification(slot, queue, stats::now());
        }
        let bell = self.producer.offer(&self.window.ring(), entry);
        if let (Some(_), Entry::Notify { slot, queue }) = (bell, entry) {
            stats::record(Kind::Ring, self.number, slot, queue, 0);
        }
        bell
    }

    /// Entries ever put on the ring.
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

    // ---- memory ----

    /// Maps `list` one block after the other from `ipa`, which must be where RAM ends so far.
    pub fn donate(&self, ipa: Ipa, list: &[u64]) -> Result<(), Refusal> {
        let core = self.core.lock();
        if core.state != ZoneState::Created {
            return Err((CommandStatus::WrongState, core.state as u64));
        }
        let have = self.blocks.load(Ordering::Acquire);
        if ipa.0 != machine::RAM_BASE + have * BLOCK_SIZE {
            return Err((CommandStatus::IpaInUse, ipa.0));
        }
        let list: ArrayVec<Pa, { ringvisor::abi::command::MAX_DONATION }> = list
            .iter()
            .take(ringvisor::abi::command::MAX_DONATION)
            .map(|&pa| Pa(pa))
            .collect();
        blocks::take(&list)?;
        let mut guard = self.stage2.lock();
        let Some(stage2) = guard.as_mut() else {
            list.iter().for_each(|&block| blocks::give_back(block));
            return Err((CommandStatus::WrongState, core.state as u64));
        };
        for (index, &block) in list.iter().enumerate() {
            let at = Ipa(ipa.0 + index as u64 * BLOCK_SIZE);
            if let Err(error) = stage2.map(&mut Tables, at, block, BLOCK_SIZE, Access::Ram) {
                stage2.unmap(&mut Tables, ipa, index as u64 * BLOCK_SIZE);
                list.iter().for_each(|&block| blocks::give_back(block));
                return Err(match error {
                    ringvisor::stage2::MapError::OutOfMemory => (CommandStatus::OutOfMemory, 1),
                    _ => (CommandStatus::IpaInUse, at.0),
                });
            }
        }
        self.blocks.store(have + list.len() as u64, Ordering::Release);
        arch::dsb_ish();
        Ok(())
    }
}

/// Frees a zone. No CPU is inside, and each invalidated the VMID when it left.
fn dissolve(zone: FrameBox<Zone>) {
    let memory = &mut Tables;
    if let Some(stage2) = zone.stage2.lock().take() {
        for index in 0..zone.blocks.load(Ordering::Acquire) {
            if let Some((block, _)) = stage2.translate(memory, Ipa(machine::RAM_BASE + index * BLOCK_SIZE)) {
                blocks::give_back(block);
            }
        }
        stage2.destroy(memory);
    }
}

/// Seconds since the machine started.
fn seconds() -> u64 {
    sysreg::read!("cntpct_el0") / sysreg::read!("cntfrq_el0").max(1)
}
