//! Zone 0, the root zone: a Linux that owns the machine.
//!
//! Everything is identity-mapped but EL2's memory and the GIC. PSCI and the GIC are emulated as far as
//! sharing CPUs and interrupts with other zones requires.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};

use log::info;
use ringvisor::abi::info::ZoneSummary;
use ringvisor::abi::{ROOT_ZONE, ZoneState};
use ringvisor::addr::{BLOCK_SIZE, Pa};
use ringvisor::machine::{DeviceTree, Machine, Region, RootConfig as DtbConfig, root_dtb};
use ringvisor::psci::Mpidr;
use ringvisor::vgic::{FlushRequests, RootConfig, RootGic};

use super::arch::vcpu;
use super::sync::{Mutex, Once};
use super::{control, cpu, gic, mm};

mod memory;
mod modules;
mod owner;

/// EL2's physical and virtual timers' PPIs, as BSA requires.
const EL2_TIMERS: [u32; 2] = [26, 28];

/// Root's state, set up once.
pub struct Root {
    vttbr: u64,
    /// Range of the distributor: first byte and the first one behind it.
    distributor: (u64, u64),
    gic: Mutex<RootGic>,
    flush_requests: FlushRequests,
    /// Address of the control device's ECAM window.
    ecam: u64,
    /// Address of the control device's BAR 0.
    bar: u64,
    aborts: AtomicU32,
    calls_refused: AtomicU32,
}

static ROOT: Once<Root> = Once::new();

impl Root {
    /// Returns root, or `None` before [`init`].
    #[inline]
    pub fn get() -> Option<&'static Self> {
        ROOT.get()
    }
}

/// Where root starts.
pub struct Entry {
    /// Entry point of its kernel.
    pub kernel: Pa,
    /// Its device tree.
    pub dtb: Pa,
}

/// Prepares root: its kernel, its device tree, stage 2, GIC and the control device.
///
/// # Errors
/// What is missing or does not fit, for the log.
pub fn init(tree: &DeviceTree, machine: &Machine, firmware_dtb: Pa) -> Result<Entry, String> {
    let ipa_bits = mm::ipa_bits();
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
    let placed = modules::place(machine, firmware_dtb)?;
    // Where RAM begins at address 0, its first block would have an address that Linux takes for none
    // (/proc/self/pagemap), and be a null pointer here.
    let null = Region::new(Pa(0), BLOCK_SIZE).ok_or("the first block is empty")?;
    let hidden = [el2, null];
    let config = DtbConfig {
        hidden: &hidden,
        bootargs: &placed.bootargs,
        initrd: placed.initrd,
        ecam,
        bar,
        intid,
    };
    let dtb = root_dtb(tree, &config).map_err(|error| format!("root's device tree: {error}"))?;
    let dtb = modules::write_dtb(machine, &placed, &dtb)?;

    let control = control::init(bar, intid, summary)?;
    let stage2 = memory::map_machine(machine, ipa_bits, &control, ecam, bar)
        .map_err(|error| format!("root's stage 2: {error}"))?;
    info!(
        "control device: configuration space {ecam}, BAR {bar}, INTID {intid}; stage 2: {} pages",
        stage2.pages()
    );
    let affinities: Vec<u32> = cpu::all().iter().map(|cpu| affinity(cpu.mpidr())).collect();
    let [physical_timer, virtual_timer] = EL2_TIMERS;
    let reserved = [gic::maintenance(), physical_timer, virtual_timer];
    let gic_config = RootConfig {
        affinities: &affinities,
        reserved: &reserved,
        soft: &[],
    };
    let gic =
        RootGic::new(&gic_config, &mut gic::Physical).map_err(|error| format!("root's GIC: {error}"))?;
    mm::blocks::init(machine.ram.iter().map(Region::bounds).collect());
    ROOT.call_once(|| Root {
        vttbr: vcpu::vttbr(stage2.root(), ROOT_ZONE),
        distributor: machine.gic.distributor.bounds(),
        gic: Mutex::new(gic),
        flush_requests: FlushRequests::new(),
        ecam: ecam.0,
        bar: bar.0,
        aborts: AtomicU32::new(0),
        calls_refused: AtomicU32::new(0),
    });
    Ok(Entry {
        kernel: placed.kernel,
        dtb,
    })
}

/// Returns an affinity as GICR_TYPER has it: Aff3.Aff2.Aff1.Aff0, a byte each.
fn affinity(mpidr: Mpidr) -> u32 {
    (mpidr.bits() >> 32 << 24 | mpidr.bits() & 0xff_ffff) as u32
}

/// Returns what the information page shows of root.
fn summary() -> ZoneSummary {
    let cpus = cpu::all().iter().filter(|cpu| cpu.owner() == ROOT_ZONE).count() as u8;
    ZoneSummary {
        state: ZoneState::Running as u8,
        vcpus: cpus,
        vcpus_on: cpus,
        aborts: Root::get().map_or(0, |root| root.aborts.load(Ordering::Relaxed)),
        ..ZoneSummary::default()
    }
}
