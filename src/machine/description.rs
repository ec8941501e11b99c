//! The description of the machine: [`Machine`] and its parts.

use alloc::string::String;
use alloc::vec::Vec;

use arrayvec::ArrayVec;

use super::error::MachineError;
use super::region::{Region, merge, subtract};
use super::spis::SpiSet;
use crate::abi::MAX_CPUS;
use crate::addr::{PAGE_SIZE, Pa};

/// The conduit of PSCI calls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Conduit {
    /// `smc #0`
    Smc,
    /// `hvc #0`, which EL2 cannot use. Root's tree keeps it.
    Hvc,
}

/// The GICv3.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Gic {
    /// Distributor registers.
    pub distributor: Region,
    /// Redistributor regions.
    pub redistributors: Vec<Region>,
    /// Bytes from one redistributor to the next, if they differ from those that GICR_TYPER implies.
    pub redistributor_stride: Option<u64>,
    /// Registers of the interrupt translation services, also of those that are not enabled.
    pub its: Vec<Region>,
    /// INTID of the maintenance interrupt, a PPI.
    pub maintenance: Option<u32>,
    /// Cells of an interrupt specifier: 3, or 4 where PPIs differ between clusters.
    pub interrupt_cells: u32,
}

/// A PL011.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Console {
    /// Its registers.
    pub registers: Region,
    /// INTID of its interrupt, if it is an SPI.
    pub intid: Option<u32>,
    /// UARTCLK in Hz, if it is a fixed clock.
    pub clock: Option<u32>,
}

/// A boot module: a file that the boot loader has put into RAM.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Module {
    /// Its place in RAM.
    pub region: Region,
    /// Its command line, empty if it has none.
    pub bootargs: String,
}

/// The machine as the firmware describes it.
#[derive(Clone, Debug)]
pub struct Machine {
    /// RAM, sorted, adjacent regions merged.
    pub ram: Vec<Region>,
    /// RAM that the firmware reserves: the memory reservation block and `/reserved-memory`.
    pub reserved: Vec<Region>,
    /// Affinity fields of each CPU's MPIDR, in the order of the tree.
    pub cpus: ArrayVec<u64, MAX_CPUS>,
    /// The conduit of PSCI calls.
    pub psci: Conduit,
    /// The interrupt controller.
    pub gic: Gic,
    /// The PL011 of `stdout-path`, else the first.
    pub console: Option<Console>,
    /// The function of the firmware's SCMI (Linux's `arm,scmi-smc` binding).
    pub scmi: Option<u32>,
    /// The memory that the firmware accesses for it.
    pub scmi_shared: Vec<Region>,
    /// Root's kernel.
    pub kernel: Option<Module>,
    /// Root's initial RAM file system.
    pub ramdisk: Option<Module>,
    /// EL2's command line, for [`super::Options::parse`].
    pub bootargs: String,
    /// Addresses of devices and buses, sorted, adjacent regions merged.
    pub used: Vec<Region>,
    /// Those of them that root must not reach: EL2's GIC, and what would write memory on root's behalf.
    pub hidden: Vec<Region>,
    /// SPIs that devices use.
    pub spis: SpiSet,
}

/// What root's stage 2 maps at its own address: whole pages.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RootMap {
    /// RAM.
    pub ram: Vec<Region>,
    /// Devices and buses.
    pub devices: Vec<Region>,
}

impl Machine {
    /// Returns what root may reach of the addresses below `limit`, without `holes`: RAM, and what the device
    /// tree names and is not [`Self::hidden`]. Addresses that it does not name stay unmapped, for a device
    /// may be there that writes memory on root's behalf.
    pub fn root_map(&self, holes: &[Region], limit: u64) -> RootMap {
        let pages = |regions: &[Region]| -> Vec<Region> {
            let page = |region: &Region| {
                let end = region.end().0.min(limit).next_multiple_of(PAGE_SIZE);
                Region::from_bounds(region.base().align_down(PAGE_SIZE), Pa(end))
            };
            let mut pages = Vec::new();
            for region in regions {
                pages.extend(page(region));
            }
            merge(&mut pages);
            pages
        };
        let mut holes = pages(holes);
        holes.extend(pages(&self.hidden));
        let ram = pages(&self.ram);
        RootMap {
            devices: subtract(&subtract(&pages(&self.used), &ram), &holes),
            ram: subtract(&ram, &holes),
        }
    }

    /// Checks that the boot modules are in RAM, and overlap neither each other nor the regions of `others`.
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

    /// Returns an SPI that no device uses, the highest below `limit` (the number of INTIDs in GICD_TYPER).
    pub fn free_spi(&self, limit: u32) -> Option<u32> {
        self.spis.highest_free(limit)
    }

    /// Returns `size` bytes of addresses that neither RAM nor a device uses, at a multiple of `align`, a
    /// power of two, below 2^`ipa_bits`. The first ones above all RAM, else the first ones except page 0.
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
