//! The machine of the device tree: [`Machine`]. Unlike the hypervisor this guest trusts its tree.

use arm_gic::{IntId, Trigger};
use arrayvec::ArrayVec;
use fdt::Fdt;
use fdt::node::FdtNode;

/// A device's registers and interrupt.
#[derive(Clone, Copy, Debug)]
pub struct Device {
    /// First address.
    pub base: u64,
    /// Bytes.
    pub size: u64,
    /// Its SPI.
    pub intid: IntId,
    /// Trigger of the interrupt.
    pub trigger: Trigger,
}

/// The machine.
pub struct Machine {
    /// Console.
    pub uart: Device,
    /// GICv3 distributor.
    pub gicd: u64,
    /// First redistributor.
    pub gicr: u64,
    /// PL061 with the power key.
    pub gpio: Device,
    /// virtio-mmio slots in ascending order of address.
    pub virtio: ArrayVec<Device, 64>,
    /// RAM.
    pub ram: (u64, u64),
    /// MPIDR affinities.
    pub cpus: ArrayVec<u64, 16>,
    /// Words of the command line.
    pub arguments: &'static str,
    /// First and last address of the initial RAM disk, if there is one.
    pub initrd: Option<(u64, u64)>,
}

impl Machine {
    /// Reads the tree at `address`, which boot code got in x0. The error says what is missing.
    ///
    /// # Safety
    /// At `address` is a device tree that is never changed.
    pub unsafe fn from_tree(address: u64) -> Result<Self, &'static str> {
        // SAFETY: promised by the caller.
        let fdt: Fdt<'static> =
            unsafe { Fdt::from_ptr(address as *const u8) }.map_err(|_| "no device tree in x0")?;
        // The tree is never freed; borrowed nodes are dropped here.
        let uart = fdt
            .find_compatible(&["arm,pl011"])
            .and_then(device)
            .ok_or("no PL011 with an SPI")?;
        let gpio = fdt
            .find_compatible(&["arm,pl061"])
            .and_then(device)
            .ok_or("no PL061 with an SPI")?;
        let gic = fdt.find_compatible(&["arm,gic-v3"]).ok_or("no GICv3")?;
        let mut frames = gic.reg().ok_or("GIC without reg")?;
        let mut frame = || {
            frames
                .next()
                .map(|region| region.starting_address as u64)
                .ok_or("GIC with too few frames")
        };
        let (gicd, gicr) = (frame()?, frame()?);
        let mut virtio: ArrayVec<Device, 64> = fdt
            .all_nodes()
            .filter(|node| {
                node.compatible()
                    .is_some_and(|list| list.all().any(|entry| entry == "virtio,mmio"))
            })
            .filter_map(device)
            .take(64)
            .collect();
        virtio.sort_unstable_by_key(|device| device.base);
        let region = fdt.memory().regions().next().ok_or("no memory")?;
        let ram = (
            region.starting_address as u64,
            region.size.ok_or("memory without size")? as u64,
        );
        let cpus = fdt.cpus().take(16).map(|cpu| cpu.ids().first() as u64).collect();
        let address = |name| {
            let property = fdt.find_node("/chosen")?.property(name)?;
            // QEMU writes one cell if that is enough.
            Some(
                property
                    .value
                    .iter()
                    .fold(0, |value, byte| value << 8 | u64::from(*byte)),
            )
        };
        let initrd = address("linux,initrd-start").zip(address("linux,initrd-end"));
        let arguments = fdt
            .find_node("/chosen")
            .and_then(|node| node.property("bootargs"))
            .and_then(|property| property.as_str())
            .unwrap_or_default();
        Ok(Self {
            uart,
            gpio,
            gicd,
            gicr,
            virtio,
            ram,
            cpus,
            arguments,
            initrd,
        })
    }

    /// Returns whether the command line has this word.
    pub fn has_argument(&self, word: &str) -> bool {
        self.arguments
            .split_ascii_whitespace()
            .any(|argument| argument == word)
    }

    /// Returns the value of `key=` on the command line.
    pub fn argument(&self, key: &str) -> Option<&'static str> {
        self.arguments
            .split_ascii_whitespace()
            .find_map(|word| word.split_once('=').filter(|(name, _)| *name == key))
            .map(|(_, value)| value)
    }

    /// Returns whether this is plain QEMU, the reference machine, which has other limits.
    pub fn is_reference(&self) -> bool {
        self.has_argument("reference")
    }
}

/// Returns the first `reg` and the first interrupt of a node.
fn device(node: FdtNode<'_, '_>) -> Option<Device> {
    let region = node.reg()?.next()?;
    let specifier = node.property("interrupts")?.value;
    let cell = |index: usize| {
        Some(u32::from_be_bytes(
            specifier.get(index * 4..index * 4 + 4)?.try_into().ok()?,
        ))
    };
    if cell(0)? != 0 {
        return None;
    }
    Some(Device {
        base: region.starting_address as u64,
        size: region.size? as u64,
        intid: IntId::spi(cell(1)?),
        trigger: if cell(2)? & 0xf == 1 {
            Trigger::Edge
        } else {
            Trigger::Level
        },
    })
}
