//! The machine, from the firmware's device tree, and the tree that root gets instead.
//!
//! [`DeviceTree`] checks the blob, [`Machine`] is what EL2 needs of it (`scan` and `nodes` read it),
//! [`root_dtb`] writes root's. No board is compiled in. Section numbers in this module are those of the
//! Devicetree Specification 0.4.

mod blob;
mod description;
mod error;
mod nodes;
mod options;
mod prop;
mod region;
mod root;
mod scan;
mod spis;
mod writer;

use alloc::string::{String, ToString};

pub use blob::{BlobError, DeviceTree, MAX_DEPTH, MAX_SIZE};
pub use description::{Conduit, Console, Gic, Machine, Module, RootMap};
pub use error::MachineError;
pub use options::{LogLevel, OptionError, Options, PanicAction};
pub use region::{Region, merge, subtract};
pub use root::{ECAM_SIZE, RootConfig, RootDtbError, root_dtb};
pub use spis::{SPI_END, SpiSet};

use scan::Scan;

impl Machine {
    /// Reads the tree.
    ///
    /// # Errors
    /// See [`MachineError`]. A missing console or boot module is not an error here.
    pub fn from_tree(tree: &DeviceTree) -> Result<Self, MachineError> {
        let fdt = tree.fdt()?;
        let root = blob::root(&fdt)?;
        let mut scan = Scan::run(&fdt)?;
        merge(&mut scan.ram);
        if scan.ram.is_empty() {
            return Err(MachineError::NoMemory);
        }
        let mut reserved = tree.reservations.to_vec();
        reserved.append(&mut scan.reserved);
        merge(&mut reserved);
        merge(&mut scan.used);

        let chosen = nodes::child(root, "chosen");
        let stdout = chosen.and_then(|chosen| {
            let path = prop::string(chosen, "stdout-path")?;
            Some(nodes::resolve(root, path.split(':').next().unwrap_or(path)))
        });
        let selected = scan.uarts.iter().find(|(path, _)| Some(path.as_str()) == stdout);
        let console = selected.or(scan.uarts.first()).map(|(_, console)| *console);
        let mut kernel = None;
        let mut ramdisk = None;
        let mut bootargs = String::new();
        if let Some(chosen) = chosen {
            bootargs = prop::string(chosen, "bootargs").unwrap_or_default().to_string();
            for node in chosen.children().filter(|node| nodes::is_module(*node)) {
                if prop::is_compatible(node, "multiboot,kernel") {
                    kernel = kernel.or(Some(nodes::module(chosen, node)?));
                } else if prop::is_compatible(node, "multiboot,ramdisk") {
                    ramdisk = ramdisk.or(Some(nodes::module(chosen, node)?));
                }
            }
        }
        let mut gic = scan.gic.ok_or(MachineError::NoGic)?;
        gic.its = scan.its;
        Ok(Self {
            ram: scan.ram,
            reserved,
            cpus: nodes::cpus(root)?,
            psci: nodes::psci(&fdt)?,
            console,
            scmi: scan.scmi,
            scmi_shared: scan.scmi_shared,
            gic,
            kernel,
            ramdisk,
            bootargs,
            used: scan.used,
            hidden: scan.hidden,
            spis: scan.spis,
        })
    }
}
