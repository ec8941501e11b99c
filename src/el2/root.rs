//! Zone 0: a Linux that owns the machine. Identity-mapped but for EL2's memory and the GIC; PSCI and GIC
//! emulated just enough that CPUs and interrupts can be shared with other zones.

use alloc::collections::BinaryHeap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};

use log::{info, warn};
use ringvisor::abi::info::ZoneSummary;
use ringvisor::abi::{BAR_SIZE, ROOT_ZONE, ZoneState};
use ringvisor::addr::{BLOCK_SIZE, Ipa, PAGE_SIZE, Pa};
use ringvisor::machine::{DeviceTree, Machine, Region, RootConfig as DtbConfig, root_dtb};
use ringvisor::psci::{self, Call, Error, Mpidr};
use ringvisor::stage2::{Access, MapError, Stage2, gaps};
use ringvisor::syndrome::Width;
use ringvisor::vgic::{FlushRequests, Kicks, RootConfig, RootGic, SgiRequest};

use super::arch::vectors::TrapFrame;
use super::arch::{self, vcpu};
use super::cpu::Cpu;
use super::gic::{self, LocalShadow};
use super::mm::frames::Tables;
use super::sync::{Mutex, Once};
use super::traps::{Outcome, bytes};
use super::{control, cpu, mm, zone};

mod image;

/// PPIs that EL2 keeps: maintenance, hypervisor timer, hypervisor virtual timer.
const RESERVED_PPIS: [u32; 3] = [25, 26, 28];

/// Root's state, set up once.
struct Root {
    vttbr: u64,
    ram: Vec<(u64, u64)>,
    distributor: (u64, u64),
    gic: Mutex<RootGic>,
    flush_requests: FlushRequests,
    ecam: u64,
    bar: u64,
}

static ROOT: Once<Root> = Once::new();
static ABORTS: AtomicU32 = AtomicU32::new(0);
static CALLS_REFUSED: AtomicU32 = AtomicU32::new(0);

/// Where root starts.
pub struct Entry {
    /// First instruction of its kernel.
    pub kernel: Pa,
    /// Its device tree.
    pub dtb: Pa,
}

/// Prepares root: kernel and device tree in place, stage 2, GIC, control device.
pub fn init(tree: &DeviceTree, machine: &Machine, firmware_dtb: Pa) -> Result<Entry, String> {
    let ipa_bits = super::ipa_bits();
    let window = machine
        .free_window(BLOCK_SIZE, BLOCK_SIZE, ipa_bits)
        .ok_or("no free addresses for the control device")?;
    let (ecam, bar) = (window.base(), Pa(window.base().0 + BLOCK_SIZE / 2));
    let intid = machine
        .free_spi(gic::interrupt_limit())
        .ok_or("no free SPI for the control device")?;

    let (start, end) = mm::el2_range();
    let el2 = Region::from_bounds(start, end).ok_or("EL2's memory is empty")?;
    let firmware =
        Region::new(firmware_dtb, tree.size() as u64).ok_or("the firmware's device tree is empty")?;
    machine
        .check_modules(&[("EL2", el2), ("the firmware's device tree", firmware)])
        .map_err(|error| format!("{error}"))?;
    let placed = image::place(machine, firmware_dtb)?;
    let hidden = [el2];
    let config = DtbConfig {
        hidden: &hidden,
        bootargs: &placed.bootargs,
        initrd: placed.initrd,
        ecam,
        bar,
        intid,
    };
    let dtb = root_dtb(tree, &config).map_err(|error| format!("root's device tree: {error}"))?;
    let dtb = image::write_dtb(machine, &placed, &dtb)?;

    let control = control::init(ecam, bar, intid)?;
    let stage2 = map_machine(machine, ipa_bits, &control, ecam, bar)
        .map_err(|error| format!("root's stage 2: {error}"))?;
    info!(
        "control device: configuration space {ecam}, BAR {bar}, INTID {intid}; stage 2: {} pages",
        stage2.pages()
    );
    let affinities: Vec<u32> = cpu::all().iter().map(|cpu| affinity(cpu.mpidr())).collect();
    let reserved = RESERVED_PPIS;
    let gic_config = RootConfig {
        affinities: &affinities,
        reserved: &reserved,
        soft: &[],
    };
    let gic =
        RootGic::new(&gic_config, &mut gic::Physical).map_err(|error| format!("root's GIC: {error}"))?;
    let ram: Vec<_> = machine
        .ram
        .iter()
        .map(|region| (region.base().0, region.end().0))
        .collect();
    mm::blocks::init(&ram);
    let distributor = (machine.gic.distributor.base().0, machine.gic.distributor.end().0);
    ROOT.call_once(|| Root {
        vttbr: vcpu::vttbr(stage2.root(), ROOT_ZONE),
        ram,
        distributor,
        gic: Mutex::new(gic),
        flush_requests: FlushRequests::new(),
        ecam: ecam.0,
        bar: bar.0,
    });
    Ok(Entry {
        kernel: placed.kernel,
        dtb,
    })
}

/// Aff3.Aff2.Aff1.Aff0, a byte each.
fn affinity(mpidr: Mpidr) -> u32 {
    (mpidr.bits() >> 32 << 24 | mpidr.bits() & 0xff_ffff) as u32
}

/// Everything at its own address: RAM as RAM, the rest as devices, less EL2's memory, the GIC and the window.
fn map_machine(
    machine: &Machine,
    ipa_bits: u32,
    control: &control::Pages,
    ecam: Pa,
    bar: Pa,
) -> Result<Stage2, MapError> {
    let memory = &mut Tables;
    let mut tree = Stage2::new(memory, ipa_bits).ok_or(MapError::OutOfMemory)?;
    let (start, end) = mm::el2_range();
    let mut holes: Vec<(u64, u64)> = Vec::new();
    holes.push((start.0, end.0));
    holes.push((ecam.0, ecam.0 + BLOCK_SIZE));
    for region in core::iter::once(&machine.gic.distributor).chain(&machine.gic.redistributors) {
        holes.push((
            region.base().0 & !(PAGE_SIZE - 1),
            region.end().0.next_multiple_of(PAGE_SIZE),
        ));
    }
    let ram = machine.ram.iter().map(|region| (region.base().0, region.end().0));
    let mut not_ram = holes.clone();
    not_ram.extend(ram.clone());
    // Sorted as in `region::merge`.
    let not_ram = BinaryHeap::from(not_ram).into_sorted_vec();
    let limit = tree.limit();
    gaps(limit, &not_ram, |at, len| {
        tree.map(memory, Ipa(at), Pa(at), len, Access::Device)
    })?;
    let holes = BinaryHeap::from(holes).into_sorted_vec();
    for (from, to) in ram {
        let inside: Vec<_> = holes
            .iter()
            .filter(|hole| hole.0 < to && hole.1 > from)
            .map(|hole| (hole.0.saturating_sub(from), hole.1 - from))
            .collect();
        gaps(to - from, &inside, |at, len| {
            tree.map(memory, Ipa(from + at), Pa(from + at), len, Access::Ram)
        })?;
    }
    let mut page = |at: u64, to: Pa| tree.map(memory, Ipa(at), to, PAGE_SIZE, Access::DeviceReadOnly);
    page(ecam.0, control.config)?;
    for function in 1..ringvisor::machine::ECAM_SIZE / PAGE_SIZE {
        page(ecam.0 + function * PAGE_SIZE, control.ones)?;
    }
    page(bar.0, control.info)?;
    let mut shown = Vec::new();
    super::stats::init(|offset, to| shown.push((offset as u64 / PAGE_SIZE, to)))
        .map_err(|_| MapError::OutOfMemory)?;
    for index in 2..BAR_SIZE / PAGE_SIZE {
        let to = shown.iter().find(|(at, _)| *at == index);
        page(bar.0 + index * PAGE_SIZE, to.map_or(control.ones, |(_, to)| *to))?;
    }
    Ok(tree)
}

/// Whether the whole range is RAM that root may give away.
pub fn owns_ram(start: Pa, len: u64) -> bool {
    let (el2_start, el2_end) = mm::el2_range();
    let Some(end) = start.checked_add(len) else {
        return false;
    };
    let in_ram = ROOT
        .get()
        .is_some_and(|root| root.ram.iter().any(|&(from, to)| start.0 >= from && end.0 <= to));
    in_ram && (end <= el2_start || start >= el2_end)
}

/// Makes this CPU root's: registers, stage 2, list registers. `alone`: no other CPU is root's yet, [`Cpu::trap_tlbi`].
/// False if there is no root.
pub fn prepare_vcpu(cpu: &Cpu, alone: bool) -> bool {
    let Some(root) = ROOT.get() else { return false };
    cpu.trap_tlbi(alone);
    vcpu::reset(root.vttbr, cpu.mpidr().bits(), 0);
    arch::tlbi_alle1();
    gic::reset_private(cpu, 0);
    gic::clear_list_registers();
    let kicks = gic::with_list_registers(|list| root.gic.lock().unpark(cpu.index, list, &mut gic::Physical));
    root.ring(kicks);
    true
}

impl Root {
    /// Tells other CPUs of root that their list registers are out of date.
    fn ring(&self, kicks: Kicks) {
        for index in self.flush_requests.raise(kicks).iter() {
            if let Some(cpu) = cpu::all().get(index) {
                gic::kick(cpu);
            }
        }
    }

    /// Changes the GIC and refills this CPU's list registers.
    fn with_gic<T>(
        &self,
        cpu: &Cpu,
        change: impl FnOnce(&mut RootGic, &mut LocalShadow<'_>) -> (Kicks, T),
    ) -> T {
        let (kicks, result) = gic::with_list_registers(|list| {
            let mut gic = self.gic.lock();
            let (kicks, result) = change(&mut gic, list);
            (kicks | gic.flush(cpu.index, list), result)
        });
        self.ring(kicks.without(cpu.index));
        result
    }
}

/// Refills this CPU's list registers if another CPU has changed what belongs in them.
pub fn flush_interrupts(cpu: &Cpu) {
    if let Some(root) = ROOT.get()
        && root.flush_requests.take(cpu.index)
    {
        root.with_gic(cpu, |_, _| (Kicks::NONE, ()));
    }
}

/// A maintenance interrupt of this CPU.
pub fn maintenance(cpu: &Cpu) {
    if let Some(root) = ROOT.get() {
        let kicks = gic::with_list_registers(|list| root.gic.lock().sync(cpu.index, list));
        root.ring(kicks);
    }
}

/// A physical interrupt on a CPU of root's.
pub fn inject_physical(cpu: &Cpu, intid: u32) {
    let taken = ROOT
        .get()
        .is_some_and(|root| root.with_gic(cpu, |gic, _| gic.inject_physical(cpu.index, intid)));
    if !taken {
        gic::deactivate(intid);
    }
}

/// An SPI came to a CPU that is not root's (it was on its way when the CPU changed hands): to a CPU of root's.
pub fn reroute(intid: u32) {
    if let Some(root) = ROOT.get()
        && let Some(cpu) = cpu::all()
            .iter()
            .find(|cpu| cpu.owner() == ROOT_ZONE && cpu.state() == 1)
    {
        root.gic.lock().reroute(intid, cpu.index, &mut gic::Physical);
        gic::set_pending(intid);
    }
}

/// A write to one of the SGI registers.
pub fn send_sgi(cpu: &Cpu, request: &SgiRequest) {
    if let Some(root) = ROOT.get() {
        root.with_gic(cpu, |gic, _| (gic.send_sgi(cpu.index, request), ()));
    }
}

/// A trapped write to ICC_DIR_EL1.
pub fn deactivate(cpu: &Cpu, intid: u32) {
    if let Some(root) = ROOT.get() {
        let kicks = gic::with_list_registers(|list| root.gic.lock().deactivate(cpu.index, intid, list));
        root.ring(kicks);
    }
}

/// An access of root's that stage 2 stopped.
pub fn access(ipa: Ipa, width: Width, stored: Option<u64>) -> Outcome {
    let Some(root) = ROOT.get() else {
        return Outcome::Abort;
    };
    let at = ipa.0;
    if (root.bar..root.bar + BAR_SIZE).contains(&at) {
        if let Some(value) = stored {
            control::bar_write((at - root.bar) as u32, width, value);
        }
        return Outcome::Done(0);
    }
    if (root.ecam..root.ecam + ringvisor::machine::ECAM_SIZE).contains(&at) {
        if let Some(value) = stored {
            control::config_write((at - root.ecam) as u32, width, value);
        }
        return Outcome::Done(u64::MAX);
    }
    let this = cpu::this();
    if (root.distributor.0..root.distributor.1).contains(&at) {
        let offset = (at - root.distributor.0) as u32;
        let mut turned_off = false;
        let outcome = root.with_gic(this, |gic, list| {
            let kicks = gic.sync(this.index, list);
            match stored {
                Some(value) => {
                    let was_on = gic.is_on();
                    let more = gic.dist_write(offset, bytes(width), value, &mut gic::Physical);
                    turned_off = was_on && !gic.is_on();
                    (kicks | more, Outcome::Done(0))
                }
                None => match gic.await_dist_read(this.index, offset, bytes(width)) {
                    Kicks::NONE => {
                        let value = gic.dist_read(offset, bytes(width), &mut gic::Physical);
                        (kicks, Outcome::Done(value))
                    }
                    others => (kicks | others, Outcome::Again),
                },
            }
        });
        if turned_off {
            end_of_kernel();
        }
        return outcome;
    }
    if let Some((target, offset)) = gic::redistributor_at(at) {
        return root.with_gic(this, |gic, list| {
            let kicks = gic.sync(this.index, list);
            match stored {
                Some(value) => {
                    let more = gic.redist_write(target, offset, bytes(width), value, &mut gic::Physical);
                    (kicks | more, Outcome::Done(0))
                }
                None => match gic.await_redist_read(this.index, target, offset, bytes(width)) {
                    Kicks::NONE => {
                        let value = gic.redist_read(target, offset, bytes(width), &mut gic::Physical);
                        (kicks, Outcome::Done(value))
                    }
                    others => (kicks | others, Outcome::Again),
                },
            }
        });
    }
    Outcome::Abort
}

/// Counts a wild access of root's and logs the first ones.
pub fn count_abort(ipa: Ipa, pc: u64) {
    let count = ABORTS.fetch_add(1, Ordering::Relaxed);
    if count < 8 {
        warn!("root: no access to {ipa} (pc {pc:#x}): external abort");
    }
}

/// What the information page says of root.
pub fn summary() -> ZoneSummary {
    let cpus = cpu::all().iter().filter(|cpu| cpu.owner() == ROOT_ZONE).count() as u8;
    ZoneSummary {
        state: ZoneState::Running as u8,
        vcpus: cpus,
        vcpus_on: cpus,
        aborts: ABORTS.load(Ordering::Relaxed),
        ..ZoneSummary::default()
    }
}

/// HVC or SMC of root's.
pub fn call(frame: &mut TrapFrame) {
    let [x0, x1, x2, x3, ..] = frame.x;
    let result = match Call::decode([x0, x1, x2, x3]) {
        Some(call) => psci_call(call),
        None => {
            if CALLS_REFUSED.fetch_add(1, Ordering::Relaxed) == 0 {
                info!(
                    "root: unknown call {:#x} (pc {:#x}), expected one of PSCI 1.1: NOT_SUPPORTED; further ones are not logged",
                    x0 as u32, frame.elr
                );
            }
            Err(Error::NotSupported)
        }
    };
    frame.x[0] = result.unwrap_or_else(Error::to_register);
}

fn psci_call(call: Call) -> Result<u64, Error> {
    let this = cpu::this();
    match call {
        Call::Version => Ok(psci::PSCI_VERSION),
        Call::SmcccVersion => Ok(psci::SMCCC_VERSION),
        Call::MigrateInfoType => Ok(psci::NO_TRUSTED_OS),
        Call::Features(id) => psci::features(id),
        Call::SmcccArchFeatures(id) => psci::arch_features(id),
        // The CPU is root's alone: standby is as good as any deeper state, and waking up at once is allowed
        // (DEN 0022, 5.1.2).
        Call::CpuSuspend { .. } => Ok(0),
        Call::CpuOff => {
            info!("root gives cpu{} up", this.index);
            if let Some(root) = ROOT.get() {
                let kicks = gic::with_list_registers(|list| {
                    root.gic.lock().park(this.index, list, &mut gic::Physical)
                });
                root.ring(kicks);
            }
            cpu::retire()
        }
        Call::CpuOn {
            target,
            entry,
            context,
        } => {
            let mpidr = Mpidr::from_argument(target).ok_or(Error::InvalidParameters)?;
            let target = cpu::find(mpidr).ok_or(Error::InvalidParameters)?;
            if target.owner() == ROOT_ZONE {
                return Err(Error::AlreadyOn);
            }
            if !target.claim(ROOT_ZONE, target.index as u8, core::ptr::null_mut()) {
                return Err(Error::Denied);
            }
            info!("root takes cpu{}", target.index);
            cpu::this().trap_tlbi(false);
            target.start(entry.0, context);
            Ok(0)
        }
        Call::AffinityInfo { target, lowest_level } => {
            if lowest_level > 3 {
                return Err(Error::InvalidParameters);
            }
            let wanted = Mpidr::from_argument(target).ok_or(Error::InvalidParameters)?;
            let mut members = cpu::all()
                .iter()
                .filter(|cpu| cpu.mpidr().same_from(wanted, lowest_level))
                .peekable();
            members.peek().ok_or(Error::InvalidParameters)?;
            Ok(u64::from(!members.any(|cpu| cpu.owner() == ROOT_ZONE)))
        }
        Call::SystemOff => {
            info!("root powers the machine off");
            // Comes back only if the firmware refuses.
            let _ = smccc::psci::system_off::<smccc::Smc>();
            Err(Error::InternalFailure)
        }
        Call::SystemReset => {
            info!("root resets the machine");
            let _ = smccc::psci::system_reset::<smccc::Smc>();
            Err(Error::InternalFailure)
        }
        Call::SystemReset2 { reset_type, cookie } => {
            psci::check_reset2(reset_type)?;
            info!("root resets the machine");
            let _ = smccc::psci::system_reset2::<smccc::Smc>(reset_type, cookie);
            let _ = smccc::psci::system_reset::<smccc::Smc>();
            Err(Error::InternalFailure)
        }
    }
}

/// Root has turned its distributor off: a kernel that was started by another one, as by kexec, sets up its GIC. If zones
/// exist, it takes their memory and the page that EL2 shares with the daemon for its own, so the machine is reset, as by any
/// other restart of root.
fn end_of_kernel() {
    let zones = zone::count();
    if zones == 0 {
        return;
    }
    warn!(
        "root's kernel was replaced while {zones} zones exist, whose memory it would use: the machine is reset"
    );
    // Comes back only if the firmware refuses.
    let _ = smccc::psci::system_reset::<smccc::Smc>();
}

/// Cleans what EL2 wrote into root's memory, because root starts with its caches off.
fn clean(start: Pa, len: usize) {
    // SAFETY: root's RAM is mapped until `forget_ram`, after this.
    unsafe { arch::clean_data_cache(start.0 as usize, len) }
}
