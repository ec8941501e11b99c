//! [`root_dtb`]: root's device tree. The firmware's, with these changes:
//!
//! - memory nodes without EL2's memory, so that root never accesses it;
//! - nothing that root must not reach (`nodes::is_hidden`), and no references to an interrupt translation
//!   service: root's GIC has no LPIs;
//! - `/chosen` with root's command line and initial RAM file system, without the boot modules;
//! - a `pci-host-ecam-generic` bridge of its own domain, on which the control device is the only function.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use fdt::node::FdtNode;
use thiserror::Error;

use super::blob::{self, BlobError, DeviceTree};
use super::nodes;
use super::prop::{self, CellCounts, Cells};
use super::region::{Region, subtract};
use super::spis::SPI_END;
use super::writer::Writer;
use crate::abi;
use crate::abi::machine::SPI_BASE;
use crate::addr::Pa;

/// Bytes of configuration space of the bridge's only bus: 32 devices of 8 functions of 4 KiB.
pub const ECAM_SIZE: u64 = 1 << 20;

/// What root's tree has that the firmware's does not.
#[derive(Clone, Copy, Debug)]
pub struct RootConfig<'a> {
    /// EL2's memory.
    pub hidden: &'a [Region],
    /// Root's kernel command line.
    pub bootargs: &'a str,
    /// Root's initial RAM file system.
    pub initrd: Option<Region>,
    /// Configuration space of the control device's bridge, [`ECAM_SIZE`] bytes.
    pub ecam: Pa,
    /// BAR 0 of the control device, [`abi::BAR_SIZE`] bytes, aligned to that.
    pub bar: Pa,
    /// INTID of the control device's interrupt, an SPI.
    pub intid: u32,
}

/// Why root's tree cannot be written.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RootDtbError {
    /// The firmware's tree cannot be read.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// The GIC has no phandle, so the control device cannot refer to it.
    #[error("the arm,gic-v3 node has no phandle")]
    GicPhandle,
    /// An address or size does not fit the cells of its node.
    #[error("{path}: {value:#x} does not fit its cells")]
    CellWidth {
        /// The node.
        path: String,
        /// The address or size.
        value: u64,
    },
    /// `reg` of a memory node is malformed.
    #[error("{0}: bad reg")]
    MemoryReg(String),
    /// The interrupt is not an SPI.
    #[error("INTID {0} is not an SPI")]
    NotSpi(u32),
}

/// Returns root's device tree, made from the firmware's.
///
/// # Errors
/// See [`RootDtbError`].
pub fn root_dtb(tree: &DeviceTree, config: &RootConfig<'_>) -> Result<Vec<u8>, RootDtbError> {
    let fdt = tree.fdt()?;
    let root = blob::root(&fdt)?;
    let gic = fdt
        .all_nodes()
        .find(|node| prop::is_compatible(*node, "arm,gic-v3"))
        .ok_or(RootDtbError::GicPhandle)?;
    let is_its = |node: &FdtNode<'_, '_>| prop::is_compatible(*node, "arm,gic-v3-its");
    let pci_domain = fdt
        .all_nodes()
        .filter_map(|node| prop::u32_property(node, "linux,pci-domain"))
        .max();
    let mut copy = Copy {
        config,
        its: fdt
            .all_nodes()
            .filter(is_its)
            .filter_map(|node| prop::u32_property(node, "phandle"))
            .collect(),
        msi_cells: fdt
            .all_nodes()
            .filter_map(|node| {
                Some((
                    prop::u32_property(node, "phandle")?,
                    prop::u32_property(node, "#msi-cells")?,
                ))
            })
            .collect(),
        writer: Writer::default(),
    };
    copy.writer.begin("");
    copy.properties(root);
    let mut has_chosen = false;
    for node in root.children() {
        if node.name == "chosen" {
            has_chosen = true;
            copy.chosen(Some(node))?;
        } else {
            copy.node(node, "", CellCounts::of(root))?;
        }
    }
    if !has_chosen {
        copy.chosen(None)?;
    }
    let bridge = Bridge {
        gic: prop::u32_property(gic, "phandle").ok_or(RootDtbError::GicPhandle)?,
        gic_address_cells: prop::u32_property(gic, "#address-cells").unwrap_or(0),
        gic_interrupt_cells: prop::u32_property(gic, "#interrupt-cells").unwrap_or(3),
        // All bridges have the property or none (Linux's of_pci_bus_find_domain_nr).
        domain: pci_domain.map(|highest| highest.wrapping_add(1)),
    };
    copy.control_bridge(&bridge, CellCounts::of(root))?;
    copy.writer.end();
    Ok(copy.writer.finish(&tree.reservations, tree.boot_cpu))
}

/// What the bridge's node needs of the rest of the tree.
struct Bridge {
    gic: u32,
    gic_address_cells: u32,
    gic_interrupt_cells: u32,
    domain: Option<u32>,
}

/// The copy in progress.
struct Copy<'c> {
    config: &'c RootConfig<'c>,
    /// phandles of the interrupt translation services.
    its: BTreeSet<u32>,
    /// `#msi-cells` by phandle.
    msi_cells: Vec<(u32, u32)>,
    writer: Writer,
}

impl Copy<'_> {
    /// Copies a node and all below it; nested no deeper than [`blob::MAX_DEPTH`].
    fn node(&mut self, node: FdtNode<'_, '_>, parent: &str, cells: CellCounts) -> Result<(), RootDtbError> {
        // __symbols__ and the like are for overlays only.
        if nodes::is_hidden(node) || node.name.starts_with("__") {
            return Ok(());
        }
        let path = format!("{parent}/{}", node.name);
        if prop::string(node, "device_type") == Some("memory") {
            return self.memory(node, &path, cells);
        }
        self.writer.begin(node.name);
        self.properties(node);
        for child in node.children() {
            self.node(child, &path, CellCounts::of(node))?;
        }
        self.writer.end();
        Ok(())
    }

    /// Copies all properties, without references to an interrupt translation service.
    fn properties(&mut self, node: FdtNode<'_, '_>) {
        for property in node.properties() {
            let kept = match property.name {
                "msi-map" => self.msi_map(property.value),
                "msi-parent" => self.msi_parent(property.value),
                "msi-map-mask" => {
                    let map = prop::value(node, "msi-map");
                    map.is_none_or(|map| self.msi_map(map).is_some())
                        .then(|| property.value.to_vec())
                }
                _ => Some(property.value.to_vec()),
            };
            if let Some(value) = kept {
                self.writer.property(property.name, &value);
            }
        }
    }

    /// Returns `msi-map` without the entries for an ITS; `None` if none is left. Entry: first id, phandle,
    /// MSI base, count.
    fn msi_map(&self, value: &[u8]) -> Option<Vec<u8>> {
        let is_its = |entry: &&[u8]| {
            let mut cells = Cells::new(entry);
            cells.next_u32();
            cells
                .next_u32()
                .is_some_and(|phandle| self.its.contains(&phandle))
        };
        let left: Vec<u8> = value
            .chunks(16)
            .filter(|entry| !is_its(entry))
            .flatten()
            .copied()
            .collect();
        (!left.is_empty()).then_some(left)
    }

    /// Returns `msi-parent` without the entries for an ITS; `None` if none is left. Entry: phandle,
    /// `#msi-cells` cells.
    fn msi_parent(&self, value: &[u8]) -> Option<Vec<u8>> {
        let mut left = Vec::new();
        let mut cells = Cells::new(value);
        while let Some(phandle) = cells.next_u32() {
            let arguments = self
                .msi_cells
                .iter()
                .find(|(known, _)| *known == phandle)
                .map_or(0, |(_, cells)| *cells);
            let kept = !self.its.contains(&phandle);
            let mut entry = alloc::vec![phandle];
            entry.extend((0..arguments.min(16)).map_while(|_| cells.next_u32()));
            if kept {
                left.extend(entry.iter().flat_map(|cell| cell.to_be_bytes()));
            }
        }
        (!left.is_empty()).then_some(left)
    }

    /// Copies a memory node without EL2's memory; omits it if nothing is left.
    fn memory(&mut self, node: FdtNode<'_, '_>, path: &str, cells: CellCounts) -> Result<(), RootDtbError> {
        let regions = prop::value(node, "reg")
            .and_then(|value| prop::reg(value, cells))
            .ok_or_else(|| RootDtbError::MemoryReg(path.to_string()))?;
        let left = subtract(&regions, self.config.hidden);
        let Some(first) = left.first() else {
            return Ok(());
        };
        let name = match node.name.split_once('@') {
            Some((name, _)) => format!("{name}@{:x}", first.base().0),
            None => node.name.to_string(),
        };
        let mut reg = Vec::new();
        for region in &left {
            push(&mut reg, path, region.base().0, cells.address)?;
            push(&mut reg, path, region.size(), cells.size)?;
        }
        self.writer.begin(&name);
        for property in node.properties() {
            if property.name == "reg" {
                self.writer.cells("reg", &reg);
            } else {
                self.writer.property(property.name, property.value);
            }
        }
        self.writer.end();
        Ok(())
    }

    /// Writes `/chosen`: root's command line and initial RAM file system instead of the boot modules.
    fn chosen(&mut self, node: Option<FdtNode<'_, '_>>) -> Result<(), RootDtbError> {
        let config = self.config;
        self.writer.begin("chosen");
        if let Some(node) = node {
            for property in node.properties() {
                if !matches!(
                    property.name,
                    "bootargs" | "linux,initrd-start" | "linux,initrd-end"
                ) {
                    self.writer.property(property.name, property.value);
                }
            }
        }
        self.writer.string("bootargs", config.bootargs);
        if let Some(initrd) = config.initrd {
            let writer = &mut self.writer;
            writer.property("linux,initrd-start", &initrd.base().0.to_be_bytes());
            writer.property("linux,initrd-end", &initrd.end().0.to_be_bytes());
        }
        if let Some(node) = node {
            for child in node.children().filter(|child| !nodes::is_module(*child)) {
                self.node(child, "/chosen", CellCounts::of(node))?;
            }
        }
        self.writer.end();
        Ok(())
    }

    /// Writes the bridge of the control device (Linux's `pci-host-ecam-generic` binding, IEEE 1275 PCI
    /// binding).
    fn control_bridge(&mut self, bridge: &Bridge, cells: CellCounts) -> Result<(), RootDtbError> {
        let config = self.config;
        let spi = config
            .intid
            .checked_sub(SPI_BASE)
            .filter(|_| config.intid < SPI_END)
            .ok_or(RootDtbError::NotSpi(config.intid))?;
        let name = format!("pcie@{:x}", config.ecam.0);
        let path = format!("/{name}");

        let mut reg = Vec::new();
        push(&mut reg, &path, config.ecam.0, cells.address)?;
        push(&mut reg, &path, ECAM_SIZE, cells.size)?;
        // One window, 64-bit memory, not prefetchable, bus address = CPU address: it fits the BAR exactly, so
        // Linux has only one place to put it.
        let mut ranges = alloc::vec![0x0300_0000];
        push(&mut ranges, &path, config.bar.0, 2)?;
        push(&mut ranges, &path, config.bar.0, cells.address)?;
        push(&mut ranges, &path, abi::BAR_SIZE, 2)?;
        // INTA of every function (the mask excludes the function) is the SPI, level-sensitive, active high.
        // The parent's unit address has the GIC's #address-cells.
        let mut map = alloc::vec![0, 0, 0, 1, bridge.gic];
        map.extend((0..bridge.gic_address_cells.min(4)).map(|_| 0));
        map.extend([0, spi, 4]);
        map.extend((3..bridge.gic_interrupt_cells.min(4)).map(|_| 0));

        let writer = &mut self.writer;
        writer.begin(&name);
        writer.string("compatible", "pci-host-ecam-generic");
        writer.string("device_type", "pci");
        writer.cells("#address-cells", &[3]);
        writer.cells("#size-cells", &[2]);
        writer.cells("#interrupt-cells", &[1]);
        writer.cells("reg", &reg);
        writer.cells("ranges", &ranges);
        writer.cells("bus-range", &[0, 0]);
        writer.cells("interrupt-map-mask", &[0, 0, 0, 7]);
        writer.cells("interrupt-map", &map);
        if let Some(domain) = bridge.domain {
            writer.cells("linux,pci-domain", &[domain]);
        }
        writer.property("dma-coherent", &[]);
        writer.end();
        Ok(())
    }
}

/// Appends `value` as `count` cells.
fn push(cells: &mut Vec<u32>, path: &str, value: u64, count: u32) -> Result<(), RootDtbError> {
    match count {
        1 if value >> 32 == 0 => cells.push(value as u32),
        2 => cells.extend([(value >> 32) as u32, value as u32]),
        _ => {
            return Err(RootDtbError::CellWidth {
                path: path.to_string(),
                value,
            });
        }
    }
    Ok(())
}
