//! Single nodes of the device tree: interrupt controller, CPUs, PSCI, timer, boot modules.

use alloc::string::ToString;
use alloc::vec::Vec;

use arrayvec::ArrayVec;
use fdt::Fdt;
use fdt::node::FdtNode;

use super::description::{Conduit, Gic, Module};
use super::error::MachineError;
use super::prop::{self, CellCounts, Cells};
use super::region::Region;
use crate::abi::MAX_CPUS;

/// Bits of MPIDR_EL1 that are affinity fields, as in a CPU's `reg`.
const MPIDR_AFFINITY: u64 = 0xff_00ff_ffff;

/// Devices that root gets neither in its device tree nor in its stage 2, by `compatible`: each writes memory,
/// or executes instructions, for the software that programs it, and neither stage 2 nor an SMMU checks that.
/// Every other frame of a machine is in docs/frames.md.
const HIDDEN: [&str; 3] = [
    // Writes to its tables; ITS and LPIs are off (`gic::turn_lpis_off`).
    "arm,gic-v3-its",
    // Copies to any address that is stored to its DMA register.
    "qemu,fw-cfg-mmio",
    // A CPU halted by its debug registers executes what is stored to EDITR, at any exception level.
    "arm,coresight-cpu-debug",
];

/// Returns whether root must not reach the device, see [`HIDDEN`].
pub(super) fn is_hidden(node: FdtNode<'_, '_>) -> bool {
    HIDDEN.iter().any(|name| prop::is_compatible(node, name))
}

/// From the GIC's node; `regions` are its `reg` as CPU addresses.
pub(super) fn gic(node: FdtNode<'_, '_>, path: &str, regions: &[Region]) -> Result<Gic, MachineError> {
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
    Ok(Gic {
        distributor: *distributor,
        redistributors: redistributors.to_vec(),
        redistributor_stride,
        its: Vec::new(),
        maintenance: ppis(node, interrupt_cells).next(),
        interrupt_cells,
    })
}

/// Returns the child of `node` with this name, ignoring its unit address.
pub(super) fn child<'b, 'a>(node: FdtNode<'b, 'a>, name: &str) -> Option<FdtNode<'b, 'a>> {
    node.children()
        .find(|child| child.name.split('@').next() == Some(name))
}

/// Returns `path`, or the path of the alias.
pub(super) fn resolve<'a>(root: FdtNode<'_, 'a>, path: &'a str) -> &'a str {
    if path.starts_with('/') {
        return path;
    }
    child(root, "aliases")
        .and_then(|aliases| prop::string(aliases, path))
        .unwrap_or(path)
}

/// Returns whether a child of `/chosen` is a boot module.
pub(super) fn is_module(node: FdtNode<'_, '_>) -> bool {
    prop::is_compatible(node, "multiboot,module")
}

/// Reads a boot module. QEMU writes its `reg` with two cells each and `/chosen` without cell counts, so two
/// is the default.
pub(super) fn module(chosen: FdtNode<'_, '_>, node: FdtNode<'_, '_>) -> Result<Module, MachineError> {
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

/// Returns the CPUs without a failed status (3.8). `disabled` means not yet started.
pub(super) fn cpus(root: FdtNode<'_, '_>) -> Result<ArrayVec<u64, MAX_CPUS>, MachineError> {
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

/// Returns the conduit of PSCI. Version 0.1 has no fixed function numbers and is not supported.
pub(super) fn psci(fdt: &Fdt<'_>) -> Result<Conduit, MachineError> {
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

/// Returns the INTIDs of the PPIs in a node's `interrupts`, in order; an entry that is no PPI ends the list.
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
