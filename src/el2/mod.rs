//! Everything that only makes sense at EL2: boot, exceptions, the physical GIC, root and the zones.
//!
//! `arch` is the instruction set and uses no sibling; `mm` is memory; `cpu` the physical CPUs; `gic` the physical
//! interrupt controller; `traps` decodes exceptions and hands them to `root` or `zone`; `control` is the device by
//! which the daemon talks to EL2, `stats` what it sees of EL2. The rules (transport, vGIC, PSCI, stage 2) are in the library.
//!
//! Lock order: control, then a zone's core, then a device slot or the UART, then a vGIC; stage-1 map and frame
//! pools are leaves.

pub mod arch;
mod console;
mod control;
mod cpu;
mod device;
mod gic;
mod mm;
pub mod panic;
mod root;
mod stats;
mod sync;
pub mod traps;
mod zone;

use alloc::vec::Vec;
use core::cell::UnsafeCell;

use log::{LevelFilter, error, info, warn};
use ringvisor::abi::MAX_CPUS;
use ringvisor::addr::Pa;
use ringvisor::machine::{Conduit, DeviceTree, LogLevel, Machine, Options};
use ringvisor::stage2::Stage2;

use arch::boot::SecondaryContext;
use arch::vectors::STACK_SHIFT;
use arch::{features, sysreg};
use sync::Once;

/// Bits of a zone's physical address at most: what the tables' 40-bit form gives.
const MAX_IPA_BITS: u32 = 40;

/// How long secondaries have to come up, in seconds.
const SECONDARY_PATIENCE: u64 = 2;

struct SecondaryContexts(UnsafeCell<[SecondaryContext; MAX_CPUS]>);

// SAFETY: written by the boot CPU before it starts the secondary that reads its own element.
unsafe impl Sync for SecondaryContexts {}

static SECONDARIES: SecondaryContexts = SecondaryContexts(UnsafeCell::new(
    [SecondaryContext {
        ttbr: 0,
        tcr: 0,
        stack: 0,
        argument: 0,
    }; MAX_CPUS],
));

static VTCR: Once<u64> = Once::new();

/// Bits of zones' physical addresses on this machine.
pub fn ipa_bits() -> u32 {
    features::pa_bits().min(MAX_IPA_BITS)
}

/// The boot CPU's way from the first page table to root's kernel. Never returns.
pub extern "C" fn boot_main(image: u64, dtb: u64) -> ! {
    mm::init();
    arch::vectors::install();
    if let Err(reason) = start(image, dtb) {
        error!("cannot start root: {reason}");
    }
    arch::halt()
}

fn start(image: u64, dtb: u64) -> Result<(), alloc::string::String> {
    use alloc::format;

    // SAFETY: the boot protocol puts the device tree there; two 2 MiB blocks from it are mapped.
    let header = unsafe { core::slice::from_raw_parts(dtb as *const u8, 64) };
    let size =
        DeviceTree::size_from_header(header).map_err(|error| format!("device tree at {dtb:#x}: {error}"))?;
    // SAFETY: as above; `size` is bounded to what is mapped.
    let blob = unsafe { core::slice::from_raw_parts(dtb as *const u8, size) };
    let tree = DeviceTree::parse(blob).map_err(|error| format!("device tree at {dtb:#x}: {error}"))?;
    let machine = Machine::from_tree(&tree).map_err(|error| format!("device tree: {error}"))?;

    cpu::init(machine.cpus.iter().copied(), arch::boot::boot_stack());
    map_memory(&machine)?;
    let options = Options::parse(&machine.bootargs);
    if let Some(console) = machine.console {
        let level = options
            .as_ref()
            .map_or(LogLevel::Info, |options| options.log_level);
        console::init(console.registers.base(), level_filter(level as u8));
    }
    let (start, end) = mm::el2_range();
    info!(
        "ringvisor {} at {image:#x}, memory {start} to {end}",
        env!("CARGO_PKG_VERSION")
    );
    if let Err(reason) = options {
        warn!("/chosen/bootargs: {reason}");
    }
    let ipa_bits = ipa_bits();
    let vtcr = *VTCR.call_once(|| Stage2::vtcr(ipa_bits, (sysreg::read!("id_aa64mmfr0_el1") & 0xf).min(5)));
    features::configure(vtcr);
    arch::tlbi_alle1();

    let addresses = gic::Addresses {
        distributor: machine.gic.distributor.base().0 as usize,
        redistributors: machine
            .gic
            .redistributors
            .iter()
            .take(8)
            .map(|region| (region.base().0 as usize, region.size() as usize))
            .collect(),
    };
    let missing = gic::init(&addresses);
    if missing > 0 {
        warn!("{missing} CPUs have no redistributor");
    }
    gic::init_cpu(cpu::this());
    mm::stage1::guard_stack(arch::boot::boot_stack()).map_err(|_| "no guard page for the boot stack")?;
    start_secondaries(&machine);

    let entry = root::init(&tree, &machine, Pa(dtb))?;
    let ram: Vec<_> = machine
        .ram
        .iter()
        .map(|region| (region.base().0, region.end().0))
        .collect();
    mm::stage1::forget_ram(&ram).map_err(|_| "cannot unmap root's memory")?;
    let (pages, used) = mm::frames::usage();
    info!(
        "{used} of {pages} pages in use; root starts at {:#x}",
        entry.kernel.0
    );
    drop((tree, machine, ram, addresses));
    cpu::enter_root(entry.kernel.0, entry.dtb.0)
}

fn map_memory(machine: &Machine) -> Result<(), &'static str> {
    let ram: Vec<_> = machine
        .ram
        .iter()
        .map(|region| (region.base().0, region.end().0))
        .collect();
    let mut devices = Vec::new();
    let gic = core::iter::once(&machine.gic.distributor).chain(&machine.gic.redistributors);
    for region in machine
        .console
        .iter()
        .map(|console| &console.registers)
        .chain(gic)
    {
        devices.push((region.base().0 & !0xfff, (region.end().0 + 0xfff) & !0xfff));
    }
    mm::stage1::init(&ram, &devices).map_err(|_| "cannot map EL2's memory")
}

/// A `log` filter from 1 (error) to 5 (trace).
pub fn level_filter(level: u8) -> LevelFilter {
    match level {
        0 => LevelFilter::Off,
        1 => LevelFilter::Error,
        2 => LevelFilter::Warn,
        3 => LevelFilter::Info,
        4 => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    }
}

/// Brings all other CPUs into their idle loop at EL2. One that does not come is left out, with a message.
fn start_secondaries(machine: &Machine) {
    if machine.psci == Conduit::Hvc {
        warn!("PSCI is by HVC, which EL2 cannot call: only the boot CPU is used");
        return;
    }
    let own = cpu::this().index;
    for cpu in cpu::all().iter().filter(|cpu| cpu.index != own) {
        let pages = (2 << STACK_SHIFT) / ringvisor::addr::PAGE_SIZE as usize;
        let Some(area) = mm::frames::NORMAL.alloc(pages) else {
            warn!("cpu{}: no memory for its stack, it is left out", cpu.index);
            continue;
        };
        let area = area.as_ptr() as usize;
        if mm::stage1::guard_stack(area).is_err() {
            warn!("cpu{}: no guard page, it is left out", cpu.index);
            continue;
        }
        let context = cpu::secondary_context(cpu, area, mm::stage1::ttbr());
        // SAFETY: this element belongs to a CPU that has not been started; the range is mapped.
        let place = unsafe {
            let place = SECONDARIES.0.get().cast::<SecondaryContext>().add(cpu.index);
            place.write(context);
            arch::clean_data_cache(place as usize, size_of::<SecondaryContext>());
            place as u64
        };
        let entry = arch::boot::secondary_entry();
        if let Err(error) = smccc::psci::cpu_on::<smccc::Smc>(cpu.mpidr().bits(), entry, place) {
            warn!("cpu{}: PSCI CPU_ON: {error}", cpu.index);
        }
    }
    let deadline = sysreg::read!("cntpct_el0") + SECONDARY_PATIENCE * sysreg::read!("cntfrq_el0");
    while cpu::all().iter().any(|cpu| !cpu.is_here()) && sysreg::read!("cntpct_el0") < deadline {
        arch::relax();
    }
    let here = cpu::all().iter().filter(|cpu| cpu.is_here()).count();
    info!("{here} of {} CPUs at EL2", cpu::all().len());
}

/// Where a secondary CPU comes out of the assembly; `argument` is its `Cpu`.
pub extern "C" fn secondary_main(argument: u64) -> ! {
    // SAFETY: the boot CPU passed a reference to an element of its static table.
    let cpu: &'static cpu::Cpu = unsafe { &*(argument as *const cpu::Cpu) };
    cpu::enter_secondary(cpu, VTCR.get().copied().unwrap_or(0))
}
