//! The device tree of a guest: the machine of QEMU's `virt`, at the addresses in [`ringvisor::abi::machine`].
//!
//! Node and property names, and the order of compatible strings, are those that QEMU writes, because guests
//! look for them. virtio-mmio nodes stand in ascending order: Linux probes in the order of the tree, so disk
//! 0 becomes `/dev/vda`.

use ringvisor::abi::MAX_VCPUS;
use ringvisor::abi::machine::{
    FLASH_BASE, FLASH_SIZE, FW_CFG_BASE, FW_CFG_SIZE, GICD_BASE, GICD_SIZE, GICR_BASE, GICR_STRIDE,
    GPIO_BASE, GPIO_SPI, PHYSICAL_TIMER, RAM_BASE, RTC_BASE, RTC_SPI, UART_BASE, UART_SPI, VIRTIO_BASE,
    VIRTIO_SIZE, VIRTIO_SPI, VIRTIO_STRIDE, VIRTUAL_TIMER, vcpu_mpidr,
};
use ringvisor::pl061::POWER_KEY;
use vm_fdt::{Error, FdtWriter, FdtWriterNode};

const PHANDLE_GIC: u32 = 1;
const PHANDLE_CLOCK: u32 = 2;
const PHANDLE_GPIO: u32 = 3;
/// Linux's code of the power key (`include/uapi/linux/input-event-codes.h`).
const KEY_POWER: u32 = 116;
/// First cell of an interrupt specifier (arm,gic-v3 binding).
const SPI: u32 = 0;
const PPI: u32 = 1;
const LEVEL_HIGH: u32 = 4;
/// INTID of the first PPI.
const PPI_BASE: u32 = 16;

/// What the tree depends on.
pub struct Machine<'a> {
    /// vCPUs.
    pub vcpus: usize,
    /// Bytes of RAM.
    pub memory: u64,
    /// Kernel command line.
    pub cmdline: &'a str,
    /// Guest-physical start and end of the initial RAM disk.
    pub initrd: Option<(u64, u64)>,
    /// virtio-mmio slots to announce, from slot 0.
    pub slots: usize,
    /// Whether it has flash and firmware configuration, and no command line.
    pub firmware: bool,
    /// Random bytes for the guest's kernel.
    pub seed: &'a Seed,
}

/// Random bytes in a guest's device tree.
pub struct Seed {
    /// `rng-seed`: credited to the guest's entropy pool.
    pub rng: [u8; 64],
    /// `kaslr-seed`: randomizes the address at which the kernel maps itself.
    pub kaslr: u64,
}

/// Returns the device tree of `machine`.
///
/// # Errors
/// The command line has a NUL byte, or there are more vCPUs than the contract allows.
pub fn build(machine: &Machine<'_>) -> Result<Vec<u8>, Error> {
    let mut fdt = FdtWriter::new()?;
    let root = fdt.begin_node("")?;
    fdt.property_string("compatible", "linux,dummy-virt")?;
    fdt.property_string("model", "linux,dummy-virt")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_u32("interrupt-parent", PHANDLE_GIC)?;
    fdt.property_null("dma-coherent")?;
    chosen(&mut fdt, machine)?;
    let memory = fdt.begin_node(&format!("memory@{RAM_BASE:x}"))?;
    fdt.property_string("device_type", "memory")?;
    fdt.property_array_u64("reg", &[RAM_BASE, machine.memory])?;
    fdt.end_node(memory)?;
    cpus(&mut fdt, machine.vcpus.min(MAX_VCPUS))?;
    psci(&mut fdt)?;
    timer(&mut fdt)?;
    gic(&mut fdt, machine.vcpus.min(MAX_VCPUS))?;
    primecells(&mut fdt)?;
    if machine.firmware {
        firmware(&mut fdt)?;
    }
    for slot in 0..machine.slots {
        virtio_mmio(&mut fdt, slot)?;
    }
    fdt.end_node(root)?;
    fdt.finish()
}

fn chosen(fdt: &mut FdtWriter, machine: &Machine<'_>) -> Result<(), Error> {
    let node = fdt.begin_node("chosen")?;
    // Firmware writes its own.
    if !machine.firmware {
        fdt.property_string("bootargs", machine.cmdline)?;
    }
    fdt.property_string("stdout-path", &format!("/pl011@{UART_BASE:x}"))?;
    fdt.property("rng-seed", &machine.seed.rng)?;
    fdt.property_u64("kaslr-seed", machine.seed.kaslr)?;
    if let Some((start, end)) = machine.initrd {
        fdt.property_u64("linux,initrd-start", start)?;
        fdt.property_u64("linux,initrd-end", end)?;
    }
    fdt.end_node(node)
}

fn cpus(fdt: &mut FdtWriter, vcpus: usize) -> Result<(), Error> {
    let node = fdt.begin_node("cpus")?;
    fdt.property_u32("#address-cells", 1)?;
    fdt.property_u32("#size-cells", 0)?;
    for vcpu in 0..vcpus {
        // Affinity levels 0 to 2 fit into one cell.
        let mpidr = u32::try_from(vcpu_mpidr(vcpu)).unwrap_or(u32::MAX);
        let cpu = fdt.begin_node(&format!("cpu@{mpidr:x}"))?;
        fdt.property_string("device_type", "cpu")?;
        fdt.property_string("compatible", "arm,armv8")?;
        fdt.property_u32("reg", mpidr)?;
        fdt.property_string("enable-method", "psci")?;
        fdt.end_node(cpu)?;
    }
    fdt.end_node(node)
}

fn psci(fdt: &mut FdtWriter) -> Result<(), Error> {
    let node = fdt.begin_node("psci")?;
    let compatible = ["arm,psci-1.0", "arm,psci-0.2", "arm,psci"].map(str::to_owned);
    fdt.property_string_list("compatible", compatible.into())?;
    fdt.property_string("method", "hvc")?;
    // Function numbers for guests that know PSCI 0.1 only.
    fdt.property_u32("cpu_suspend", 0xc400_0001)?;
    fdt.property_u32("cpu_off", 0x8400_0002)?;
    fdt.property_u32("cpu_on", 0xc400_0003)?;
    fdt.property_u32("migrate", 0xc400_0005)?;
    fdt.end_node(node)
}

fn timer(fdt: &mut FdtWriter) -> Result<(), Error> {
    let node = fdt.begin_node("timer")?;
    let compatible = ["arm,armv8-timer", "arm,armv7-timer"].map(str::to_owned);
    fdt.property_string_list("compatible", compatible.into())?;
    fdt.property_null("always-on")?;
    // Secure physical, non-secure physical, virtual, hypervisor: the binding fixes the order. The first and
    // the last are never used at EL1 but have to be there.
    let interrupts = [29, PHYSICAL_TIMER, VIRTUAL_TIMER, 26];
    let cells: Vec<u32> = interrupts
        .iter()
        .flat_map(|intid: &u32| [PPI, intid.saturating_sub(PPI_BASE), LEVEL_HIGH])
        .collect();
    fdt.property_array_u32("interrupts", &cells)?;
    fdt.end_node(node)
}

fn gic(fdt: &mut FdtWriter, vcpus: usize) -> Result<(), Error> {
    let node = fdt.begin_node(&format!("intc@{GICD_BASE:x}"))?;
    fdt.property_string("compatible", "arm,gic-v3")?;
    fdt.property_phandle(PHANDLE_GIC)?;
    fdt.property_u32("#interrupt-cells", 3)?;
    fdt.property_null("interrupt-controller")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_null("ranges")?;
    fdt.property_u32("#redistributor-regions", 1)?;
    fdt.property_array_u64(
        "reg",
        &[GICD_BASE, GICD_SIZE, GICR_BASE, GICR_STRIDE * vcpus as u64],
    )?;
    fdt.end_node(node)
}

/// The UART, the real-time clock, the GPIO controller with the power key, and the clock input of all.
fn primecells(fdt: &mut FdtWriter) -> Result<(), Error> {
    let clock = fdt.begin_node("apb-pclk")?;
    fdt.property_string("compatible", "fixed-clock")?;
    fdt.property_u32("#clock-cells", 0)?;
    fdt.property_u32("clock-frequency", 24_000_000)?;
    fdt.property_string("clock-output-names", "clk24mhz")?;
    fdt.property_phandle(PHANDLE_CLOCK)?;
    fdt.end_node(clock)?;

    let uart = primecell(fdt, "pl011", UART_BASE, UART_SPI, &["uartclk", "apb_pclk"])?;
    fdt.end_node(uart)?;
    let rtc = primecell(fdt, "pl031", RTC_BASE, RTC_SPI, &["apb_pclk"])?;
    fdt.end_node(rtc)?;

    let gpio = primecell(fdt, "pl061", GPIO_BASE, GPIO_SPI, &["apb_pclk"])?;
    fdt.property_u32("#gpio-cells", 2)?;
    fdt.property_null("gpio-controller")?;
    fdt.property_phandle(PHANDLE_GPIO)?;
    fdt.end_node(gpio)?;
    let keys = fdt.begin_node("gpio-keys")?;
    fdt.property_string("compatible", "gpio-keys")?;
    let key = fdt.begin_node("poweroff")?;
    fdt.property_array_u32("gpios", &[PHANDLE_GPIO, POWER_KEY.into(), 0])?;
    fdt.property_u32("linux,code", KEY_POWER)?;
    fdt.property_string("label", "GPIO Key Poweroff")?;
    fdt.end_node(key)?;
    fdt.end_node(keys)
}

/// Begins the node of a PrimeCell.
fn primecell(
    fdt: &mut FdtWriter,
    name: &str,
    base: u64,
    spi: u32,
    clocks: &[&str],
) -> Result<FdtWriterNode, Error> {
    let node = fdt.begin_node(&format!("{name}@{base:x}"))?;
    fdt.property_string_list("compatible", vec![format!("arm,{name}"), "arm,primecell".into()])?;
    fdt.property_array_u64("reg", &[base, 0x1000])?;
    fdt.property_array_u32("interrupts", &[SPI, spi, LEVEL_HIGH])?;
    fdt.property_array_u32("clocks", &vec![PHANDLE_CLOCK; clocks.len()])?;
    fdt.property_string_list("clock-names", clocks.iter().map(|&clock| clock.into()).collect())?;
    Ok(node)
}

/// The flash banks and the firmware configuration device.
fn firmware(fdt: &mut FdtWriter) -> Result<(), Error> {
    let flash = fdt.begin_node(&format!("flash@{FLASH_BASE:x}"))?;
    fdt.property_string("compatible", "cfi-flash")?;
    let second = FLASH_BASE + FLASH_SIZE;
    fdt.property_array_u64("reg", &[FLASH_BASE, FLASH_SIZE, second, FLASH_SIZE])?;
    fdt.property_u32("bank-width", 4)?;
    fdt.end_node(flash)?;
    let node = fdt.begin_node(&format!("fw-cfg@{FW_CFG_BASE:x}"))?;
    fdt.property_string("compatible", "qemu,fw-cfg-mmio")?;
    fdt.property_array_u64("reg", &[FW_CFG_BASE, FW_CFG_SIZE])?;
    fdt.property_null("dma-coherent")?;
    fdt.end_node(node)
}

fn virtio_mmio(fdt: &mut FdtWriter, slot: usize) -> Result<(), Error> {
    let base = VIRTIO_BASE + VIRTIO_STRIDE * slot as u64;
    let node = fdt.begin_node(&format!("virtio_mmio@{base:x}"))?;
    fdt.property_string("compatible", "virtio,mmio")?;
    fdt.property_array_u64("reg", &[base, VIRTIO_SIZE])?;
    let spi = VIRTIO_SPI.saturating_add(u32::try_from(slot).unwrap_or(u32::MAX));
    // QEMU announces a rising edge; the line of the transport is a level (virtio 1.2, 4.2.3.4).
    fdt.property_array_u32("interrupts", &[SPI, spi, LEVEL_HIGH])?;
    fdt.property_null("dma-coherent")?;
    fdt.end_node(node)
}

#[cfg(test)]
mod tests {
    use ringvisor::abi::MAX_VCPUS;

    use super::{Machine, Seed, build};

    fn tree(vcpus: usize, slots: usize, initrd: Option<(u64, u64)>) -> Vec<u8> {
        let seed = Seed {
            rng: [7; 64],
            kaslr: 0x1234,
        };
        let cmdline = "console=ttyAMA0 root=/dev/vda rw";
        build(&Machine {
            vcpus,
            memory: 512 << 20,
            cmdline,
            initrd,
            slots,
            firmware: initrd.is_none(),
            seed: &seed,
        })
        .unwrap()
    }

    fn cells(node: &fdt::node::FdtNode<'_, '_>, property: &str) -> Vec<u32> {
        let value = node.property(property).unwrap().value;
        value
            .chunks(4)
            .map(|cell| u32::from_be_bytes(cell.try_into().unwrap()))
            .collect()
    }

    #[test]
    fn a_parser_finds_the_machine() {
        let bytes = tree(2, 3, Some((0x4800_0000, 0x4812_3456)));
        let tree = fdt::Fdt::new(&bytes).unwrap();
        let region = tree.memory().regions().next().unwrap();
        assert_eq!(
            (region.starting_address as u64, region.size),
            (0x4000_0000, Some(512 << 20))
        );
        assert_eq!(tree.chosen().bootargs(), Some("console=ttyAMA0 root=/dev/vda rw"));
        assert_eq!(tree.chosen().stdout().unwrap().name, "pl011@9000000");
        let ids: Vec<usize> = tree.cpus().map(|cpu| cpu.ids().first()).collect();
        assert_eq!(ids, [0, 1]);
        let chosen = tree.find_node("/chosen").unwrap();
        assert_eq!(cells(&chosen, "linux,initrd-start"), [0, 0x4800_0000]);
        assert_eq!(cells(&chosen, "linux,initrd-end"), [0, 0x4812_3456]);
        assert_eq!(chosen.property("rng-seed").unwrap().value, [7; 64]);
        assert_eq!(cells(&chosen, "kaslr-seed"), [0, 0x1234]);
    }

    #[test]
    fn interrupts_and_addresses_are_those_of_the_contract() {
        let bytes = tree(4, 2, None);
        let tree = fdt::Fdt::new(&bytes).unwrap();
        let gic = tree.find_node("/intc@8000000").unwrap();
        assert_eq!(
            cells(&gic, "reg"),
            [0, 0x0800_0000, 0, 0x1_0000, 0, 0x080a_0000, 0, 0x8_0000]
        );
        let timer = tree.find_node("/timer").unwrap();
        assert_eq!(
            cells(&timer, "interrupts"),
            [1, 13, 4, 1, 14, 4, 1, 11, 4, 1, 10, 4]
        );
        let uart = tree.find_node("/pl011@9000000").unwrap();
        assert_eq!(cells(&uart, "interrupts"), [0, 1, 4]);
        let rtc = tree.find_node("/pl031@9010000").unwrap();
        assert_eq!(cells(&rtc, "interrupts"), [0, 2, 4]);
        let gpio = tree.find_node("/pl061@9030000").unwrap();
        assert_eq!(cells(&gpio, "interrupts"), [0, 7, 4]);
        let key = tree.find_node("/gpio-keys/poweroff").unwrap();
        assert_eq!(cells(&key, "gpios"), [cells(&gpio, "phandle")[0], 3, 0]);
        assert_eq!(cells(&key, "linux,code"), [116]);
        assert_eq!(
            tree.find_node("/psci")
                .unwrap()
                .property("method")
                .unwrap()
                .as_str(),
            Some("hvc")
        );
        assert!(
            tree.find_node("/chosen")
                .unwrap()
                .property("linux,initrd-start")
                .is_none()
        );
    }

    // As QEMU's `dumpdtb` has them, with `reg` of a device without DMA.
    #[test]
    fn firmware_finds_its_devices() {
        let bytes = tree(1, 0, None);
        let tree = fdt::Fdt::new(&bytes).unwrap();
        let flash = tree.find_node("/flash@0").unwrap();
        assert_eq!(
            cells(&flash, "reg"),
            [0, 0, 0, 0x400_0000, 0, 0x400_0000, 0, 0x400_0000]
        );
        assert_eq!(cells(&flash, "bank-width"), [4]);
        let fw_cfg = tree.find_node("/fw-cfg@9020000").unwrap();
        assert_eq!(cells(&fw_cfg, "reg"), [0, 0x902_0000, 0, 0xa]);
        assert_eq!(tree.chosen().bootargs(), None);
        let bytes = self::tree(1, 0, Some((1, 2)));
        let tree = fdt::Fdt::new(&bytes).unwrap();
        assert!(tree.find_node("/flash@0").is_none() && tree.find_node("/fw-cfg@9020000").is_none());
    }

    #[test]
    fn disks_stand_in_ascending_order() {
        let bytes = tree(1, 4, None);
        let tree = fdt::Fdt::new(&bytes).unwrap();
        let nodes: Vec<_> = tree
            .all_nodes()
            .filter(|node| node.name.starts_with("virtio_mmio"))
            .collect();
        let names: Vec<_> = nodes.iter().map(|node| node.name).collect();
        assert_eq!(
            names,
            [
                "virtio_mmio@a000000",
                "virtio_mmio@a001000",
                "virtio_mmio@a002000",
                "virtio_mmio@a003000"
            ]
        );
        assert_eq!(cells(&nodes[3], "interrupts"), [0, 19, 4]);
        assert_eq!(cells(&nodes[3], "reg"), [0, 0x0a00_3000, 0, 0x200]);
        assert!(nodes[3].property("dma-coherent").is_some());
    }

    #[test]
    fn the_largest_machine_fits() {
        let bytes = tree(MAX_VCPUS, ringvisor::abi::MAX_SLOTS, Some((1, 2)));
        assert!(
            (bytes.len() as u64) < crate::boot::layout::FDT_MAX / 2,
            "{}",
            bytes.len()
        );
    }

    #[test]
    fn a_command_line_with_nul_is_refused() {
        let seed = Seed {
            rng: [0; 64],
            kaslr: 0,
        };
        let machine = Machine {
            vcpus: 1,
            memory: 8 << 20,
            cmdline: "a\0b",
            initrd: None,
            slots: 0,
            firmware: false,
            seed: &seed,
        };
        assert!(build(&machine).is_err());
    }
}
