//! What EL2 learns from the firmware's device tree, and the tree that root gets instead.
//!
//! [`DeviceTree`] checks the blob, [`Machine`] is what matters of it, [`root_dtb`] writes root's. Nothing about a
//! board is compiled in. Section numbers in this module are those of the Devicetree Specification 0.4.

mod blob;
mod options;
mod prop;
mod region;
mod root;
mod scan;
mod spis;

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use arrayvec::ArrayVec;
use fdt::Fdt;
use fdt::node::FdtNode;
use thiserror::Error;

pub use blob::{BlobError, DeviceTree, MAX_DEPTH, MAX_SIZE};
pub use options::{LogLevel, OptionError, Options};
pub use region::{Region, merge, subtract};
pub use root::{ECAM_SIZE, RootConfig, RootDtbError, root_dtb};
pub use spis::{SPI_END, SpiSet};

use crate::abi::MAX_CPUS;
use crate::addr::{PAGE_SIZE, Pa};
use prop::{CellCounts, Cells};
use scan::Scan;

/// Bits of MPIDR_EL1 that are affinity fields, as in a CPU's `reg`.
const MPIDR_AFFINITY: u64 = 0xff_00ff_ffff;

/// Why the machine cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum MachineError {
    /// The blob is not a device tree.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// A property has a length or value that its binding does not allow.
    #[error("{path}: bad property {property}")]
    Property {
        /// The node.
        path: String,
        /// The property.
        property: &'static str,
    },
    /// No enabled `memory` node.
    #[error("no memory in the device tree")]
    NoMemory,
    /// No node under `/cpus`.
    #[error("no CPU in the device tree")]
    NoCpu,
    /// More than [`MAX_CPUS`].
    #[error("more than 64 CPUs in the device tree")]
    TooManyCpus,
    /// Two CPUs have this `reg`.
    #[error("two CPUs with reg {0:#x}")]
    DuplicateCpu(u64),
    /// No PSCI 0.2 or later, by which CPUs are started.
    #[error("no arm,psci-0.2 or later in the device tree")]
    NoPsci,
    /// No enabled `arm,gic-v3`.
    #[error("no arm,gic-v3 in the device tree")]
    NoGic,
    /// A boot module is not in RAM.
    #[error("the boot loader put root's {module} at {region}, where there is no RAM")]
    ModuleNotInRam {
        /// Which.
        module: &'static str,
        /// Where it lies.
        region: Region,
    },
    /// A boot module shares addresses with something else, so one of the two is damaged.
    #[error(
        "the boot loader put root's {module} at {region}, over {other} at {taken}: choose another address"
    )]
    ModuleOverlap {
        /// Which.
        module: &'static str,
        /// Where it lies.
        region: Region,
        /// What is there too.
        other: &'static str,
        /// Where that lies.
        taken: Region,
    },
}

/// How PSCI is called.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Conduit {
    /// `smc #0`
    Smc,
    /// `hvc #0`: what EL2 could not call. Root's tree keeps it, but EL2 needs the other.
    Hvc,
}

/// The GICv3.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Gic {
    /// Distributor registers.
    pub distributor: Region,
    /// Redistributor regions.
    pub redistributors: Vec<Region>,
    /// Bytes from one redistributor to the next, if they differ from what GICR_TYPER implies.
    pub redistributor_stride: Option<u64>,
    /// Whether it has an interrupt translation service.
    pub has_its: bool,
    /// INTID of the maintenance interrupt, a PPI.
    pub maintenance: Option<u32>,
    /// Cells of an interrupt specifier: 3, or 4 where PPIs differ between clusters.
    pub interrupt_cells: u32,
}

impl Gic {
    /// From the GIC's node; `regions` are its `reg` as CPU addresses.
    fn from_node(node: FdtNode<'_, '_>, path: &str, regions: &[Region]) -> Result<Self, MachineError> {
        let bad = |property| MachineError::Property {
            path: path.to_string(),
            property,
        };
        let count = prop::u32_property(node, "#redistributor-regions").unwrap_or(1);
        let interrupt_cells = prop::u32_property(node, "#interrupt-cells")
            .filter(|cells| (3..=4).contains(cells))
            .ok_or_else(|| bad("#interrupt-cells"))?;
        let (distributor, rest) = regions.split_first().ok_or_else(|| bad("reg"))?;
        let redistributors = usize::try_from(count)
            .ok()
            .and_then(|count| rest.get(..count))
            .ok_or_else(|| bad("reg"))?;
        if redistributors.is_empty() {
            return Err(bad("#redistributor-regions"));
        }
        let redistributor_stride = match prop::value(node, "redistributor-stride") {
            None => None,
            Some(value) => {
                let cells = u32::try_from(value.len() / 4)
                    .ok()
                    .filter(|cells| (1..=2).contains(cells));
                let stride = cells.and_then(|cells| Cells::new(value).next_number(cells));
                Some(stride.ok_or_else(|| bad("redistributor-stride"))?)
            }
        };
        let has_its = node
            .children()
            .any(|child| prop::is_compatible(child, "arm,gic-v3-its") && prop::is_enabled(child));
        Ok(Self {
            distributor: *distributor,
            redistributors: redistributors.to_vec(),
            redistributor_stride,
            has_its,
            maintenance: ppis(node, interrupt_cells).next(),
            interrupt_cells,
        })
    }
}

/// A PL011.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Console {
    /// Its registers.
    pub registers: Region,
    /// INTID of its interrupt, if it is an SPI.
    pub intid: Option<u32>,
}

/// INTIDs of the generic timer's interrupts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Timer {
    /// EL1 physical timer, non-secure.
    pub physical: Option<u32>,
    /// EL1 virtual timer.
    pub virtual_: Option<u32>,
    /// EL2 physical timer.
    pub hypervisor: Option<u32>,
}

/// A boot module: something the boot loader has put into RAM.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Module {
    /// Where it lies.
    pub region: Region,
    /// Its command line, empty if it has none.
    pub bootargs: String,
}

/// The machine as the firmware describes it.
#[derive(Clone, Debug)]
pub struct Machine {
    /// RAM, sorted, neighbours joined.
    pub ram: Vec<Region>,
    /// RAM that the firmware keeps: the memory reservation block and `/reserved-memory`.
    pub reserved: Vec<Region>,
    /// Affinity fields of each CPU's MPIDR, in the order of the tree.
    pub cpus: ArrayVec<u64, MAX_CPUS>,
    /// How PSCI is called.
    pub psci: Conduit,
    /// The interrupt controller.
    pub gic: Gic,
    /// The PL011 of `stdout-path`, else the first.
    pub console: Option<Console>,
    /// The generic timer's interrupts.
    pub timer: Timer,
    /// Root's kernel.
    pub kernel: Option<Module>,
    /// Root's initial RAM file system.
    pub ramdisk: Option<Module>,
    /// EL2's command line, for [`Options::parse`].
    pub bootargs: String,
    /// Addresses that devices and buses use, sorted, neighbours joined.
    pub used: Vec<Region>,
    /// SPIs that devices use.
    pub spis: SpiSet,
}

impl Machine {
    /// Reads the tree.
    ///
    /// # Errors
    /// What [`MachineError`] lists. Missing console and boot modules are for the caller to complain of.
    pub fn from_tree(tree: &DeviceTree) -> Result<Self, MachineError> {
        let fdt = tree.fdt()?;
        let root = blob::root(&fdt)?;
        let mut scan = Scan::run(&fdt)?;
        merge(&mut scan.ram);
        if scan.ram.is_empty() {
            return Err(MachineError::NoMemory);
        }
        let mut reserved = tree.reservations().to_vec();
        reserved.append(&mut scan.reserved);
        merge(&mut reserved);
        merge(&mut scan.used);

        let chosen = child(root, "chosen");
        let stdout = chosen.and_then(|chosen| {
            let path = prop::string(chosen, "stdout-path")?;
            Some(resolve(root, path.split(':').next().unwrap_or(path)))
        });
        let selected = scan.uarts.iter().find(|(path, _)| Some(path.as_str()) == stdout);
        let console = selected.or(scan.uarts.first()).map(|(_, console)| *console);
        let mut kernel = None;
        let mut ramdisk = None;
        let mut bootargs = String::new();
        if let Some(chosen) = chosen {
            bootargs = prop::string(chosen, "bootargs").unwrap_or_default().to_string();
            for node in chosen.children().filter(|node| is_module(*node)) {
                if prop::is_compatible(node, "multiboot,kernel") {
                    kernel = kernel.or(Some(module(chosen, node)?));
                } else if prop::is_compatible(node, "multiboot,ramdisk") {
                    ramdisk = ramdisk.or(Some(module(chosen, node)?));
                }
            }
        }
        let gic = scan.gic.ok_or(MachineError::NoGic)?;
        Ok(Self {
            ram: scan.ram,
            reserved,
            cpus: cpus(root)?,
            psci: psci(&fdt)?,
            console,
            timer: timer(&fdt, gic.interrupt_cells),
            gic,
            kernel,
            ramdisk,
            bootargs,
            used: scan.used,
            spis: scan.spis,
        })
    }

    /// Checks that the boot modules lie in RAM, and neither over each other nor over what `others` names.
    ///
    /// # Errors
    /// [`MachineError::ModuleNotInRam`], [`MachineError::ModuleOverlap`].
    pub fn check_modules(&self, others: &[(&'static str, Region)]) -> Result<(), MachineError> {
        let kernel = self.kernel.as_ref().map(|module| ("kernel", module.region));
        let ramdisk = self.ramdisk.as_ref().map(|module| ("ramdisk", module.region));
        for (module, region) in kernel.into_iter().chain(ramdisk) {
            if !self.ram.iter().any(|ram| ram.contains(&region)) {
                return Err(MachineError::ModuleNotInRam { module, region });
            }
            let kept = self
                .reserved
                .iter()
                .map(|region| ("memory that the firmware keeps", *region));
            let next = ramdisk.filter(|_| module == "kernel");
            let mut taken = others.iter().copied().chain(kept).chain(next);
            if let Some((other, taken)) = taken.find(|(_, taken)| taken.overlaps(&region)) {
                return Err(MachineError::ModuleOverlap {
                    module,
                    region,
                    other,
                    taken,
                });
            }
        }
        Ok(())
    }

    /// An SPI that no device uses, the highest below `limit` (the number of INTIDs that GICD_TYPER gives).
    #[must_use]
    pub fn free_spi(&self, limit: u32) -> Option<u32> {
        self.spis.highest_free(limit)
    }

    /// Addresses that neither RAM nor a device uses: `size` bytes at a multiple of `align`, a power of two, below
    /// 2^`ipa_bits`. The first behind all RAM, or else the first of all but page 0.
    #[must_use]
    pub fn free_window(&self, size: u64, align: u64, ipa_bits: u32) -> Option<Region> {
        if !align.is_power_of_two() {
            return None;
        }
        let limit = 1_u64.checked_shl(ipa_bits).unwrap_or(u64::MAX);
        let mut taken = self.used.clone();
        taken.extend_from_slice(&self.ram);
        taken.extend_from_slice(&self.reserved);
        merge(&mut taken);
        let first_from = |start: u64| {
            let mut candidate = Region::new(Pa(start.checked_next_multiple_of(align)?), size)?;
            for region in &taken {
                if region.overlaps(&candidate) {
                    candidate = Region::new(Pa(region.end().0.checked_next_multiple_of(align)?), size)?;
                }
            }
            (candidate.end().0 <= limit).then_some(candidate)
        };
        let ram_end = self.ram.last().map_or(0, |region| region.end().0);
        first_from(ram_end).or_else(|| first_from(PAGE_SIZE))
    }
}

/// The child of `node` with this name, unit address left out.
fn child<'b, 'a>(node: FdtNode<'b, 'a>, name: &str) -> Option<FdtNode<'b, 'a>> {
    node.children()
        .find(|child| child.name.split('@').next() == Some(name))
}

/// `path`, or what it stands for if it is an alias.
fn resolve<'a>(root: FdtNode<'_, 'a>, path: &'a str) -> &'a str {
    if path.starts_with('/') {
        return path;
    }
    child(root, "aliases")
        .and_then(|aliases| prop::string(aliases, path))
        .unwrap_or(path)
}

/// Whether a child of `/chosen` is a boot module.
fn is_module(node: FdtNode<'_, '_>) -> bool {
    prop::is_compatible(node, "multiboot,module")
}

/// A boot module. QEMU writes its `reg` with two cells each and `/chosen` without cell counts, so that is what is
/// assumed if there are none.
fn module(chosen: FdtNode<'_, '_>, node: FdtNode<'_, '_>) -> Result<Module, MachineError> {
    let cells = CellCounts {
        address: prop::u32_property(chosen, "#address-cells").unwrap_or(2),
        size: prop::u32_property(chosen, "#size-cells").unwrap_or(2),
    };
    let region = prop::value(node, "reg")
        .and_then(|value| prop::reg(value, cells))
        .and_then(|regions| regions.first().copied())
        .ok_or_else(|| MachineError::Property {
            path: alloc::format!("/chosen/{}", node.name),
            property: "reg",
        })?;
    Ok(Module {
        region,
        bootargs: prop::string(node, "bootargs").unwrap_or_default().to_string(),
    })
}

/// The CPUs that are not broken (3.8). `disabled` means not yet started.
fn cpus(root: FdtNode<'_, '_>) -> Result<ArrayVec<u64, MAX_CPUS>, MachineError> {
    let parent = child(root, "cpus").ok_or(MachineError::NoCpu)?;
    let cells = prop::u32_property(parent, "#address-cells").unwrap_or(1);
    let mut list = ArrayVec::new();
    for node in parent.children() {
        let is_cpu = prop::string(node, "device_type") == Some("cpu");
        let failed = prop::string(node, "status").is_some_and(|status| status.starts_with("fail"));
        if !is_cpu || failed {
            continue;
        }
        let mpidr = prop::value(node, "reg")
            .and_then(|value| Cells::new(value).next_number(cells))
            .filter(|mpidr| mpidr & !MPIDR_AFFINITY == 0)
            .ok_or_else(|| MachineError::Property {
                path: alloc::format!("/cpus/{}", node.name),
                property: "reg",
            })?;
        if list.contains(&mpidr) {
            return Err(MachineError::DuplicateCpu(mpidr));
        }
        list.try_push(mpidr).map_err(|_| MachineError::TooManyCpus)?;
    }
    if list.is_empty() {
        Err(MachineError::NoCpu)
    } else {
        Ok(list)
    }
}

/// How PSCI is called. Version 0.1 has no fixed function numbers and is not supported.
fn psci(fdt: &Fdt<'_>) -> Result<Conduit, MachineError> {
    let node = fdt
        .all_nodes()
        .find(|node| {
            (prop::is_compatible(*node, "arm,psci-0.2") || prop::is_compatible(*node, "arm,psci-1.0"))
                && prop::is_enabled(*node)
        })
        .ok_or(MachineError::NoPsci)?;
    match prop::string(node, "method") {
        Some("smc") => Ok(Conduit::Smc),
        Some("hvc") => Ok(Conduit::Hvc),
        _ => Err(MachineError::Property {
            path: node.name.to_string(),
            property: "method",
        }),
    }
}

/// INTIDs of the PPIs in a node's `interrupts`, in order; an entry that is no PPI ends the list.
///
/// `interrupt_cells` is the GIC's `#interrupt-cells`: 3, or 4 where PPIs differ between clusters.
fn ppis<'a>(node: FdtNode<'_, 'a>, interrupt_cells: u32) -> impl Iterator<Item = u32> + 'a {
    let mut cells = Cells::new(prop::value(node, "interrupts").unwrap_or_default());
    core::iter::from_fn(move || {
        let mut specifier = cells;
        cells.skip(interrupt_cells.max(3))?;
        let kind = specifier.next_u32()?;
        let number = specifier.next_u32()?;
        (kind == 1 && number < 16).then_some(number + 16)
    })
}

/// The generic timer: secure physical, non-secure physical, virtual, hypervisor (Linux's `arm,arch_timer` binding).
fn timer(fdt: &Fdt<'_>, interrupt_cells: u32) -> Timer {
    let Some(node) = fdt
        .all_nodes()
        .find(|node| prop::is_compatible(*node, "arm,armv8-timer"))
    else {
        return Timer::default();
    };
    let mut list = ppis(node, interrupt_cells).skip(1);
    Timer {
        physical: list.next(),
        virtual_: list.next(),
        hypervisor: list.next(),
    }
}
