//! Start of EL2: the boot CPU from the early tables to root's kernel, the secondary CPUs to their idle loop.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::UnsafeCell;

use log::{error, info, warn};
use ringvisor::abi::MAX_CPUS;
use ringvisor::addr::Pa;
use ringvisor::machine::{Conduit, DeviceTree, Machine, Options, Region};
use ringvisor::stage2::Stage2;

use super::arch::boot::SecondaryContext;
use super::arch::frame::STACK_SHIFT;
use super::arch::{self, features, sysreg};
use super::cpu::{self, Cpu, State};
use super::current::Current;
use super::root::{self, Root};
use super::sync::Once;
use super::{console, firmware, gic, logger, mm, panic, run};

/// How long secondaries have to come up, in seconds.
const SECONDARY_TIMEOUT: u64 = 2;

struct SecondaryContexts(UnsafeCell<[SecondaryContext; MAX_CPUS]>);

// SAFETY: the boot CPU writes an element before it starts the secondary that reads it.
unsafe impl Sync for SecondaryContexts {}

static SECONDARIES: SecondaryContexts = SecondaryContexts(UnsafeCell::new(
    [SecondaryContext {
        ttbr: 0,
        tcr: 0,
        stack: 0,
        argument: 0,
    }; MAX_CPUS],
));

/// VTCR_EL2 of all CPUs.
static VTCR: Once<u64> = Once::new();

/// Starts EL2 on the boot CPU, from the early tables to root's kernel.
// SAFETY: the only definition of the symbol that `arch::entry` declares, with its signature.
#[unsafe(no_mangle)]
pub extern "C" fn boot_main(load_address: u64, dtb: u64) -> ! {
    mm::init();
    arch::vectors::install();
    if let Err(reason) = start(load_address, dtb) {
        error!("cannot start root: {reason}");
    }
    arch::halt()
}

fn start(load_address: u64, dtb: u64) -> Result<(), String> {
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
    mm::init_registers();
    let options = Options::parse(&machine.bootargs);
    let chosen = options.as_ref().copied().unwrap_or_default();
    panic::set_action(chosen.panic);
    let opened = console::open();
    if let Some(console) = machine.console {
        console::init(console.registers.base(), console.clock);
    }
    logger::init(logger::level_filter(chosen.log_level as u8));
    let (start, end) = mm::el2_range();
    info!(
        "ringvisor {} at {load_address:#x}, memory {start} to {end}",
        env!("CARGO_PKG_VERSION")
    );
    if opened.starts > 1 {
        let after = if opened.panic.is_some() {
            "a panic"
        } else {
            "a reset"
        };
        info!("start {} after {after}: the log goes on", opened.starts);
    }
    if let Err(reason) = options {
        warn!("/chosen/bootargs: {reason}");
    }
    let vtcr =
        *VTCR.call_once(|| Stage2::vtcr(mm::ipa_bits(), (sysreg::read!("id_aa64mmfr0_el1") & 0xf).min(5)));
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
        its: machine
            .gic
            .its
            .iter()
            .take(8)
            .map(|region| region.base().0 as usize)
            .collect(),
        maintenance: machine.gic.maintenance,
    };
    let missing = gic::init(&addresses);
    if missing > 0 {
        warn!("{missing} CPUs have no redistributor");
    }
    gic::init_cpu(cpu::this());
    gic::clear_list_registers();
    mm::stage1::guard_stack(arch::boot::boot_stack()).map_err(|_| "no guard page for the boot stack")?;
    start_secondaries(&machine);
    firmware::init(&machine);

    let entry = root::init(&tree, &machine, Pa(dtb))?;
    let ram: Vec<_> = machine.ram.iter().map(Region::bounds).collect();
    mm::stage1::unmap_ram(&ram).map_err(|_| "cannot unmap root's memory")?;
    let (pages, used) = mm::frames::usage();
    info!(
        "{used} of {pages} pages in use; root starts at {:#x}",
        entry.kernel.0
    );
    drop((tree, machine, ram, addresses));
    let Some(root) = Root::get() else { run::idle() };
    root.prepare(cpu::this(), true);
    console::booted();
    run::enter(Current::Root(root), entry.kernel.0, entry.dtb.0)
}

/// Switches EL2 to its final tables.
fn map_memory(machine: &Machine) -> Result<(), &'static str> {
    let ram: Vec<_> = machine.ram.iter().map(Region::bounds).collect();
    let mut devices = Vec::new();
    let gic = core::iter::once(&machine.gic.distributor)
        .chain(&machine.gic.redistributors)
        .chain(&machine.gic.its);
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

/// Starts all other CPUs, which then idle at EL2. One that cannot be started or does not come up in time is
/// not used, with a warning.
fn start_secondaries(machine: &Machine) {
    if machine.psci == Conduit::Hvc {
        warn!("PSCI is by HVC, which EL2 cannot call: only the boot CPU is used");
        return;
    }
    let own = cpu::this().index;
    for cpu in cpu::all().iter().filter(|cpu| cpu.index != own) {
        let pages = (2 << STACK_SHIFT) / ringvisor::addr::PAGE_SIZE as usize;
        let Some(area) = mm::frames::NORMAL.alloc(pages) else {
            warn!("cpu{}: no memory for its stack: CPU not used", cpu.index);
            continue;
        };
        let area = area.as_ptr() as usize;
        if mm::stage1::guard_stack(area).is_err() {
            warn!("cpu{}: no guard page: CPU not used", cpu.index);
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
    let deadline = sysreg::read!("cntpct_el0") + SECONDARY_TIMEOUT * sysreg::read!("cntfrq_el0");
    while cpu::all().iter().any(|cpu| !cpu.is_present()) && sysreg::read!("cntpct_el0") < deadline {
        arch::relax();
    }
    let present = cpu::all().iter().filter(|cpu| cpu.is_present()).count();
    info!("{present} of {} CPUs at EL2", cpu::all().len());
}

/// Starts EL2 on a secondary CPU, whose `Cpu` is at `argument`; it then idles.
// SAFETY: the only definition of the symbol that `arch::entry` declares, with its signature.
#[unsafe(no_mangle)]
pub extern "C" fn secondary_main(argument: u64) -> ! {
    // SAFETY: the boot CPU passed a reference to an element of its static table.
    let cpu: &'static Cpu = unsafe { &*(argument as *const Cpu) };
    cpu::set_this(cpu);
    arch::vectors::install();
    features::configure(VTCR.get().copied().unwrap_or(0));
    arch::tlbi_alle1();
    gic::init_cpu(cpu);
    gic::clear_list_registers();
    cpu.set_state(State::Parked);
    run::idle()
}
