//! One walk over the whole tree: addresses and SPIs in use, the GIC, the UARTs.
//!
//! [`Scan::run`] fills a [`Scan`], from which [`super::Machine`] is built. Addresses are CPU addresses,
//! translated through the `ranges` of all buses above (Devicetree Specification 2.3.8).

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use fdt::Fdt;
use fdt::node::FdtNode;

use super::description::{Console, Gic};
use super::error::MachineError;
use super::nodes;
use super::prop::{self, CellCounts, Cells};
use super::region::Region;
use super::spis::SpiSet;

use crate::addr::Pa;

/// The result of the walk.
#[derive(Default)]
pub(super) struct Scan {
    /// `reg` of all nodes that have CPU addresses, and the windows of buses and PCI bridges.
    pub used: Vec<Region>,
    /// See [`super::Machine::hidden`].
    pub hidden: Vec<Region>,
    /// Registers of the interrupt translation services.
    pub its: Vec<Region>,
    /// The function of SCMI.
    pub scmi: Option<u32>,
    /// Shared memory of SCMI's.
    pub scmi_shared: Vec<Region>,
    /// SPIs that nodes or interrupt maps name.
    pub spis: SpiSet,
    /// The first enabled GICv3.
    pub gic: Option<Gic>,
    /// Enabled PL011s with their paths.
    pub uarts: Vec<(String, Console)>,
    /// Nodes with `device_type = "memory"`.
    pub ram: Vec<Region>,
    /// Subnodes of `/reserved-memory`.
    pub reserved: Vec<Region>,
}

/// Translation of a node's `reg` to CPU addresses.
#[derive(Clone)]
enum Translation {
    /// `reg` holds CPU addresses.
    Identity,
    /// By these windows: bus address, CPU address, size.
    Windows(Vec<(u64, u64, u64)>),
    /// `reg` holds no CPU addresses (CPUs, PCI functions, I2C devices).
    None,
}

impl Translation {
    fn apply(&self, region: Region) -> Option<Region> {
        match self {
            Self::Identity => Some(region),
            Self::None => None,
            Self::Windows(windows) => windows.iter().find_map(|&(bus, cpu, size)| {
                let window = Region::new(Pa(bus), size)?;
                if !window.contains(&region) {
                    return None;
                }
                let offset = region.base().0.checked_sub(bus)?;
                Region::new(Pa(cpu.checked_add(offset)?), region.size())
            }),
        }
    }
}

/// What a node inherits from its parent.
struct Parent<'p> {
    path: &'p str,
    cells: CellCounts,
    translation: Translation,
    interrupt_parent: Option<u32>,
}

impl Scan {
    /// Walks the tree.
    pub fn run(fdt: &Fdt<'_>) -> Result<Self, MachineError> {
        let mut scan = Self::default();
        let root = super::blob::root(fdt)?;
        // The root's `reg`, if any, is no CPU address; its children's are.
        let parent = Parent {
            path: "",
            cells: CellCounts::of(root),
            translation: Translation::Identity,
            interrupt_parent: prop::u32_property(root, "interrupt-parent"),
        };
        for node in root.children() {
            scan.visit(fdt, node, &parent)?;
        }
        Ok(scan)
    }

    /// Visits a node and all below it; nested no deeper than [`super::blob::MAX_DEPTH`].
    fn visit(
        &mut self,
        fdt: &Fdt<'_>,
        node: FdtNode<'_, '_>,
        parent: &Parent<'_>,
    ) -> Result<(), MachineError> {
        let path = format!("{}/{}", parent.path, node.name);
        let interrupt_parent = prop::u32_property(node, "interrupt-parent").or(parent.interrupt_parent);
        let own = own_regions(node, parent, &path)?;
        let bad = |property| MachineError::Property {
            path: path.clone(),
            property,
        };

        if prop::string(node, "device_type") == Some("memory") {
            if prop::is_enabled(node) {
                self.ram.extend(own.iter().copied());
            }
        } else {
            self.used.extend(own.iter().copied());
            if nodes::is_hidden(node) || prop::is_compatible(node, "arm,gic-v3") {
                self.hidden.extend(own.iter().copied());
            }
            if prop::is_compatible(node, "arm,scmi-shmem") {
                self.scmi_shared.extend(own.iter().copied());
            }
            if prop::is_compatible(node, "arm,gic-v3-its") {
                self.its.extend(own.iter().copied());
            }
            if parent.path == "/reserved-memory" {
                self.reserved.extend(own.iter().copied());
            }
        }
        self.device(fdt, node, &path, &own, interrupt_parent)?;
        for_each_interrupt(fdt, node, interrupt_parent, |controller, specifier| {
            if prop::is_compatible(controller, "arm,gic-v3") {
                self.spis.insert_specifier(specifier);
            }
        })
        .ok_or_else(|| bad("interrupts"))?;
        if prop::value(node, "mbi-ranges").is_some() && prop::is_compatible(node, "arm,gic-v3") {
            self.message_interrupts(node).ok_or_else(|| bad("mbi-ranges"))?;
        }

        let cells = CellCounts::of(node);
        let translation = self
            .translation_below(node, cells, parent)
            .ok_or_else(|| bad("ranges"))?;
        let here = Parent {
            path: &path,
            cells,
            translation,
            interrupt_parent,
        };
        for child in node.children() {
            self.visit(fdt, child, &here)?;
        }
        Ok(())
    }

    /// Records the node if it is the GIC or a UART.
    fn device(
        &mut self,
        fdt: &Fdt<'_>,
        node: FdtNode<'_, '_>,
        path: &str,
        own: &[Region],
        interrupt_parent: Option<u32>,
    ) -> Result<(), MachineError> {
        if !prop::is_enabled(node) {
            return Ok(());
        }
        if prop::is_compatible(node, "arm,scmi-smc") {
            self.scmi = prop::u32_property(node, "arm,smc-id");
        }
        if self.gic.is_none() && prop::is_compatible(node, "arm,gic-v3") {
            self.gic = Some(nodes::gic(node, path, own)?);
        }
        if prop::is_compatible(node, "arm,pl011")
            && let Some(registers) = own.first()
        {
            let mut intid = None;
            for_each_interrupt(fdt, node, interrupt_parent, |_, specifier| {
                intid = intid.or(SpiSet::intid(specifier));
            });
            // The first one is UARTCLK (Linux's `arm,pl011` binding).
            let clock = prop::u32_property(node, "clocks").and_then(|phandle| fdt.find_phandle(phandle));
            let clock = clock.and_then(|clock| prop::u32_property(clock, "clock-frequency"));
            self.uarts.push((
                path.into(),
                Console {
                    registers: *registers,
                    intid,
                    clock,
                },
            ));
        }
        Ok(())
    }

    /// `mbi-ranges` of a GICv3: pairs of first INTID and count that devices may signal by a write.
    fn message_interrupts(&mut self, node: FdtNode<'_, '_>) -> Option<()> {
        let mut cells = Cells::new(prop::value(node, "mbi-ranges")?);
        while !cells.is_empty() {
            let (first, count) = (cells.next_u32()?, cells.next_u32()?);
            self.spis.insert_range(first, count);
        }
        Some(())
    }

    /// Returns the translation of children's addresses; records the windows themselves as used. `None` if
    /// `ranges` is malformed.
    fn translation_below(
        &mut self,
        node: FdtNode<'_, '_>,
        child: CellCounts,
        parent: &Parent<'_>,
    ) -> Option<Translation> {
        let Some(ranges) = prop::value(node, "ranges") else {
            return Some(Translation::None);
        };
        // Without any cells an entry has no length.
        if ranges.is_empty() || (child.address == 0 && parent.cells.address == 0 && child.size == 0) {
            return Some(parent.translation.clone());
        }
        // A PCI address has three cells, of which the first is a type (IEEE 1275 PCI binding).
        let pci = child.address == 3;
        let mut windows = Vec::new();
        let mut cells = Cells::new(ranges);
        while !cells.is_empty() {
            if pci {
                cells.skip(1)?;
            }
            let bus = cells.next_number(if pci { 2 } else { child.address })?;
            let cpu = cells.next_number(parent.cells.address)?;
            let size = cells.next_number(child.size)?;
            let Some(window) = Region::new(Pa(cpu), size).and_then(|window| parent.translation.apply(window))
            else {
                continue;
            };
            self.used.push(window);
            windows.push((bus, window.base().0, size));
        }
        Some(if pci {
            Translation::None
        } else {
            Translation::Windows(windows)
        })
    }
}

/// Returns the CPU addresses of a node's `reg`.
fn own_regions(node: FdtNode<'_, '_>, parent: &Parent<'_>, path: &str) -> Result<Vec<Region>, MachineError> {
    if matches!(parent.translation, Translation::None) {
        return Ok(Vec::new());
    }
    let Some(value) = prop::value(node, "reg") else {
        return Ok(Vec::new());
    };
    let regions = prop::reg(value, parent.cells).ok_or_else(|| MachineError::Property {
        path: path.into(),
        property: "reg",
    })?;
    Ok(regions
        .into_iter()
        .filter_map(|region| parent.translation.apply(region))
        .collect())
}

/// Calls `found` with controller and specifier of each interrupt that `node` raises or, as a nexus, maps
/// (2.4). Returns `None` if a property is malformed. Missing controllers are skipped.
fn for_each_interrupt(
    fdt: &Fdt<'_>,
    node: FdtNode<'_, '_>,
    interrupt_parent: Option<u32>,
    mut found: impl FnMut(FdtNode<'_, '_>, Cells<'_>),
) -> Option<()> {
    if let Some(value) = prop::value(node, "interrupts")
        && let Some(controller) = interrupt_parent.and_then(|phandle| fdt.find_phandle(phandle))
    {
        let count = prop::u32_property(controller, "#interrupt-cells").filter(|count| *count != 0);
        let mut cells = Cells::new(value);
        while let Some(count) = count.filter(|_| !cells.is_empty()) {
            let specifier = cells;
            cells.skip(count)?;
            found(controller, specifier);
        }
    }
    if let Some(value) = prop::value(node, "interrupts-extended") {
        let mut cells = Cells::new(value);
        while !cells.is_empty() {
            let Some(controller) = fdt.find_phandle(cells.next_u32()?) else {
                break;
            };
            let specifier = cells;
            cells.skip(prop::u32_property(controller, "#interrupt-cells")?)?;
            found(controller, specifier);
        }
    }
    if let Some(value) = prop::value(node, "interrupt-map") {
        // A nexus without #address-cells has none, as Linux reads it.
        let unit = prop::u32_property(node, "#address-cells").unwrap_or(0);
        let child = unit.checked_add(prop::u32_property(node, "#interrupt-cells")?)?;
        let mut cells = Cells::new(value);
        while !cells.is_empty() {
            cells.skip(child)?;
            let Some(controller) = fdt.find_phandle(cells.next_u32()?) else {
                break;
            };
            cells.skip(prop::u32_property(controller, "#address-cells").unwrap_or(0))?;
            let specifier = cells;
            cells.skip(prop::u32_property(controller, "#interrupt-cells")?)?;
            found(controller, specifier);
        }
    }
    Some(())
}
