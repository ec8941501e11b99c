//! Reads the firmware's device tree and writes root's: trees dumped from QEMU 7.2's `virt` (`-M
//! virt,gic-version=3,virtualization=on,dumpdtb=`, as in the file names) and one of an invented board.
#![cfg(test)]

use fdt::Fdt;
use fdt::node::FdtNode;
use proptest::prelude::*;
use ringvisor::abi::BAR_SIZE;
use ringvisor::addr::Pa;
use ringvisor::machine::{
    BlobError, Conduit, DeviceTree, ECAM_SIZE, Machine, MachineError, Region, RootConfig, RootDtbError,
    root_dtb,
};

const SMP4: &[u8] = include_bytes!("data/virt-smp4-2g.dtb");
const SMP8: &[u8] = include_bytes!("data/virt-smp8-8g-noits.dtb");
const BARE: &[u8] = include_bytes!("data/virt-smp1-1g-bare.dtb");
const BOARD: &[u8] = include_bytes!("data/board.dtb");

fn machine(blob: &[u8]) -> Machine {
    Machine::from_tree(&DeviceTree::parse(blob).unwrap()).unwrap()
}

fn region(base: u64, size: u64) -> Region {
    Region::new(Pa(base), size).unwrap()
}

fn config(hidden: &[Region]) -> RootConfig<'_> {
    RootConfig {
        hidden,
        bootargs: "console=ttyAMA0 root=/dev/vda",
        initrd: Some(region(0x4a00_0000, 0x1234)),
        ecam: Pa(0xc000_0000),
        bar: Pa(0xc010_0000),
        intid: 287,
    }
}

fn cells(node: FdtNode<'_, '_>, name: &str) -> Vec<u32> {
    let value = node
        .property(name)
        .unwrap_or_else(|| panic!("{} has no {name}", node.name))
        .value;
    value
        .chunks(4)
        .map(|cell| u32::from_be_bytes(cell.try_into().unwrap()))
        .collect()
}

#[test]
fn qemu_virt() {
    let machine = machine(SMP4);
    assert_eq!(machine.ram, [region(0x4000_0000, 2 << 30)]);
    assert_eq!(machine.cpus.as_slice(), [0, 1, 2, 3]);
    assert_eq!(machine.psci, Conduit::Smc);
    assert_eq!(machine.gic.distributor, region(0x0800_0000, 0x1_0000));
    assert_eq!(machine.gic.redistributors, [region(0x080a_0000, 0xf6_0000)]);
    assert_eq!(machine.gic.redistributor_stride, None);
    assert_eq!(machine.gic.its, [region(0x0808_0000, 0x2_0000)]);
    assert_eq!(machine.gic.maintenance, Some(25));
    let console = machine.console.unwrap();
    assert_eq!(
        (console.registers, console.intid, console.clock),
        (region(0x0900_0000, 0x1000), Some(33), Some(24_000_000))
    );
    let kernel = machine.kernel.as_ref().unwrap();
    assert_eq!(
        (kernel.region, kernel.bootargs.as_str()),
        (region(0x4200_0000, 4096), "console=ttyAMA0")
    );
    let ramdisk = machine.ramdisk.as_ref().unwrap();
    assert_eq!(
        (ramdisk.region, ramdisk.bootargs.as_str()),
        (region(0x4a00_0000, 4096), "")
    );
    assert_eq!(machine.bootargs, "loglevel=debug");
    // UART, RTC, PCIe INTA to INTD, GPIO, virtio.
    for intid in [33, 34, 35, 36, 37, 38, 39, 48, 79] {
        assert!(machine.spis.contains(intid), "{intid}");
    }
    assert!(!machine.spis.contains(47) && !machine.spis.contains(80));
    assert_eq!(machine.free_spi(288), Some(287));
    assert_eq!(machine.free_spi(80), Some(47));
    // Flash, GIC, PCIe windows and ECAM are used.
    for address in [
        0,
        0x0800_0000,
        0x0a00_3fff,
        0x0c00_0000,
        0x1000_0000,
        0x40_1000_0000,
        0x80_0000_0000,
    ] {
        assert!(
            machine.used.iter().any(|used| used.contains(&region(address, 1))),
            "{address:#x}"
        );
    }
}

#[test]
fn modules_are_checked() {
    let mut machine = machine(SMP4);
    let others = [
        ("the device tree", region(0x4800_0000, 1 << 20)),
        ("EL2", region(0x4020_0000, 4 << 20)),
    ];
    assert_eq!(machine.check_modules(&others), Ok(()));
    let mut place = |kernel: Region, ramdisk: Region| {
        machine.kernel.as_mut().unwrap().region = kernel;
        machine.ramdisk.as_mut().unwrap().region = ramdisk;
        machine.check_modules(&others).unwrap_err().to_string()
    };
    let ramdisk = region(0x4a00_0000, 4096);
    assert_eq!(
        place(region(0x4600_0000, 0x240_0000), ramdisk),
        "the boot loader put root's kernel at 0x46000000-0x483fffff, over the device tree at \
         0x48000000-0x480fffff: choose another address"
    );
    assert!(
        place(region(0x4000_0000, 0x20_0001), ramdisk).contains("kernel at 0x40000000-0x40200000, over EL2")
    );
    assert!(place(region(0x4900_0000, 32 << 20), ramdisk).contains("over ramdisk at 0x4a000000"));
    assert!(place(region(0xbfff_f000, 8192), ramdisk).ends_with("where there is no RAM"));
    assert!(place(region(0x5000_0000, 1), region(0x480f_ffff, 1)).contains("root's ramdisk at"));
}

#[test]
fn free_windows() {
    let machine = machine(SMP4);
    assert_eq!(
        machine.free_window(2 << 20, 2 << 20, 40),
        Some(region(0xc000_0000, 2 << 20))
    );
    // Above RAM nothing of 512 GiB is free below 2^40: the PCIe window is there.
    assert_eq!(machine.free_window(256 << 30, 1 << 30, 40), None);
    // With 32 bits there is 1 GiB above RAM.
    assert_eq!(
        machine.free_window(1 << 30, 1 << 30, 32),
        Some(region(0xc000_0000, 1 << 30))
    );
    assert_eq!(machine.free_window(1 << 20, 3, 40), None);
    // With nothing left above RAM: the first hole below it, between the devices.
    let low = machine.free_window(1 << 20, 1 << 16, 31).unwrap();
    assert!(low.end() <= Pa(0x4000_0000));
    assert!(!machine.used.iter().any(|used| used.overlaps(&low)));

    let large = self::machine(SMP8);
    assert_eq!(
        large.free_window(ECAM_SIZE, 1 << 20, 44),
        Some(region(0x2_4000_0000, ECAM_SIZE))
    );
}

#[test]
fn other_shapes_of_virt() {
    let large = machine(SMP8);
    assert_eq!(large.ram, [region(0x4000_0000, 8 << 30)]);
    assert_eq!(large.cpus.as_slice(), [0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(large.gic.its, []);
    assert_eq!(large.kernel, None);
    let bare = machine(BARE);
    assert_eq!(bare.cpus.as_slice(), [0]);
    assert_eq!(bare.ram, [region(0x4000_0000, 1 << 30)]);
    assert_eq!(bare.bootargs, "");
}

#[test]
fn root_reaches_what_the_tree_names_and_no_hidden_frame() {
    let machine = machine(SMP4);
    let el2 = region(0x4020_0000, 4 << 20);
    let map = machine.root_map(&[el2], 1 << 40);
    assert_eq!(
        map.ram,
        [region(0x4000_0000, 2 << 20), region(0x4060_0000, 0x7fa0_0000)]
    );
    let reaches = |address| {
        map.devices
            .iter()
            .any(|range| range.overlaps(&region(address, 0x1000)))
    };
    // Flash, UART, RTC, virtio, and PCIe: memory, ports, ECAM, high memory.
    for address in [
        0,
        0x0900_0000,
        0x0901_0000,
        0x0a00_3000,
        0x1000_0000,
        0x3eff_0000,
        0x40_1000_0000,
        0x80_0000_0000,
    ] {
        assert!(reaches(address), "{address:#x}");
    }
    // Distributor, ITS (both frames), redistributors, fw_cfg.
    let hidden = [0x0800_0000, 0x0808_0000, 0x0809_0000, 0x080a_0000, 0x0902_0000];
    // What the tree does not name: the secure UART, the secure RAM, addresses behind RAM.
    let unnamed = [0x0904_0000, 0x0e00_0000, 0xd000_0000];
    for address in hidden.into_iter().chain(unnamed) {
        assert!(!reaches(address), "{address:#x}");
    }
    for (index, one) in map.devices.iter().chain(&map.ram).enumerate() {
        assert!(one.base().0 % 4096 == 0 && one.size() % 4096 == 0, "{one}");
        let mut others = map.devices.iter().chain(&map.ram).skip(index + 1);
        assert!(!others.any(|other| other.overlaps(one)), "{one}");
    }
    // A window of PCIe's that stage 2 cannot translate is cut.
    let narrow = machine.root_map(&[], 1 << 36);
    assert!(narrow.devices.iter().all(|range| range.end() <= Pa(1 << 36)));
}

#[test]
fn a_board_with_buses() {
    let machine = machine(BOARD);
    assert_eq!(
        machine.ram,
        [
            region(0x8000_0000, 1 << 30),
            region(0x1_0000_0000, 256 << 20),
            region(0x8_0000_0000, 2 << 30)
        ]
    );
    assert_eq!(
        machine.reserved,
        [region(0x8000_0000, 0x1_0000), region(0xbf00_0000, 16 << 20)]
    );
    // In the order of the tree, without the failed one.
    assert_eq!(machine.cpus.as_slice(), [0x1_0000_0100, 0]);
    assert_eq!(machine.gic.distributor, region(0x180_0000, 0x1_0000));
    assert_eq!(
        machine.gic.redistributors,
        [region(0x188_0000, 0x8_0000), region(0x1a0_0000, 0x4_0000)]
    );
    assert_eq!(machine.gic.redistributor_stride, Some(0x4_0000));
    assert_eq!(
        (machine.gic.maintenance, machine.gic.interrupt_cells),
        (Some(25), 4)
    );
    // Through an alias, two buses, and interrupts-extended.
    let console = machine.console.unwrap();
    assert_eq!(
        (console.registers, console.intid),
        (region(0x1000_2000, 0x1000), Some(73))
    );
    let kernel = machine.kernel.as_ref().unwrap();
    assert_eq!(
        (kernel.region, kernel.bootargs.as_str()),
        (region(0x9000_0000, 0x100_0000), "root=/dev/sda1 quiet")
    );
    for intid in [72, 73, 74, 75, 82, 83, 200, 207, 300, 303] {
        assert!(machine.spis.contains(intid), "{intid}");
    }
    for intid in [71, 76, 84, 199, 208, 304] {
        assert!(!machine.spis.contains(intid), "{intid}");
    }
    // The I2C address is no CPU address; the second PL011 is.
    assert!(
        machine
            .used
            .iter()
            .any(|used| used.contains(&region(0x1000_1000, 0x1000)))
    );
    assert_eq!(
        machine.free_window(1 << 20, 1 << 20, 40),
        Some(region(0x8_8000_0000, 1 << 20))
    );
}

#[test]
fn root_tree_of_virt() {
    // EL2 has 32 MiB within RAM: the memory node splits.
    let hidden = [region(0x4200_0000, 32 << 20)];
    let tree = DeviceTree::parse(SMP4).unwrap();
    let blob = root_dtb(&tree, &config(&hidden)).unwrap();
    let fdt = Fdt::new(&blob).unwrap();

    let memory = fdt.find_node("/memory@40000000").unwrap();
    assert_eq!(
        cells(memory, "reg"),
        [0, 0x4000_0000, 0, 0x200_0000, 0, 0x4400_0000, 0, 0x7c00_0000]
    );
    assert_eq!(memory.property("device_type").unwrap().as_str(), Some("memory"));

    let chosen = fdt.find_node("/chosen").unwrap();
    assert_eq!(
        chosen.property("bootargs").unwrap().as_str(),
        Some("console=ttyAMA0 root=/dev/vda")
    );
    assert_eq!(cells(chosen, "linux,initrd-start"), [0, 0x4a00_0000]);
    assert_eq!(cells(chosen, "linux,initrd-end"), [0, 0x4a00_1234]);
    assert_eq!(
        chosen.property("stdout-path").unwrap().as_str(),
        Some("/pl011@9000000")
    );
    assert_eq!(chosen.property("rng-seed").unwrap().value.len(), 32);
    assert!(chosen.property("kaslr-seed").is_some());
    assert_eq!(chosen.children().count(), 0);

    assert!(fdt.all_nodes().all(|node| !node.name.starts_with("its@")));
    assert!(
        fdt.all_nodes()
            .all(|node| node.property("msi-map").is_none() && node.property("msi-parent").is_none())
    );
    assert!(fdt.find_node("/psci").is_some());

    let bridge = fdt.find_node("/pcie@c0000000").unwrap();
    assert_eq!(
        bridge.property("compatible").unwrap().as_str(),
        Some("pci-host-ecam-generic")
    );
    assert_eq!(bridge.property("device_type").unwrap().as_str(), Some("pci"));
    assert_eq!(cells(bridge, "reg"), [0, 0xc000_0000, 0, ECAM_SIZE as u32]);
    assert_eq!(cells(bridge, "bus-range"), [0, 0]);
    assert_eq!(
        cells(bridge, "ranges"),
        [0x0300_0000, 0, 0xc010_0000, 0, 0xc010_0000, 0, BAR_SIZE as u32]
    );
    let gic = cells(fdt.find_node("/intc@8000000").unwrap(), "phandle")[0];
    assert_eq!(
        cells(bridge, "interrupt-map"),
        [0, 0, 0, 1, gic, 0, 0, 0, 287 - 32, 4]
    );
    assert_eq!(cells(bridge, "interrupt-map-mask"), [0, 0, 0, 7]);
    assert_eq!(cells(bridge, "linux,pci-domain"), [1]);
    assert!(bridge.property("dma-coherent").is_some());
    // Everything else is as it was, in the same order.
    let old = Fdt::new(SMP4).unwrap();
    let names = |fdt: &Fdt<'_>| {
        fdt.all_nodes()
            .map(|node| node.name.to_string())
            .collect::<Vec<_>>()
    };
    let mut expected = names(&old);
    let hidden = ["its@", "fw-cfg@", "module@"];
    expected.retain(|name| !hidden.iter().any(|hidden| name.starts_with(hidden)));
    expected.push("pcie@c0000000".into());
    assert_eq!(names(&fdt), expected);
    let properties = |node: FdtNode<'_, '_>| {
        node.properties()
            .map(|property| (property.name.to_string(), property.value.to_vec()))
            .collect::<Vec<_>>()
    };
    for path in [
        "/",
        "/cpus/cpu@1",
        "/intc@8000000",
        "/virtio_mmio@a000000",
        "/timer",
        "/pl031@9010000",
    ] {
        assert_eq!(
            properties(fdt.find_node(path).unwrap()),
            properties(old.find_node(path).unwrap()),
            "{path}"
        );
    }

    // Parsed as a firmware's tree it yields the machine again, with less RAM and the new bridge's addresses
    // used.
    let again = machine(&blob);
    assert_eq!(
        again.ram,
        [region(0x4000_0000, 32 << 20), region(0x4400_0000, 0x7c00_0000)]
    );
    assert_eq!(again.gic.its, []);
    assert!(again.spis.contains(287));
    for used in [region(0xc000_0000, ECAM_SIZE), region(0xc010_0000, BAR_SIZE)] {
        assert!(again.used.iter().any(|range| range.contains(&used)), "{used}");
    }
}

#[test]
fn root_tree_of_the_board() {
    let tree = DeviceTree::parse(BOARD).unwrap();
    // All of one bank, the beginning of another.
    let hidden = [
        region(0x1_0000_0000, 256 << 20),
        region(0x7_0000_0000, 0x1_0020_0000),
    ];
    let config = RootConfig {
        initrd: None,
        ..config(&hidden)
    };
    let blob = root_dtb(&tree, &config).unwrap();
    let fdt = Fdt::new(&blob).unwrap();
    assert!(fdt.find_node("/memory@100000000").is_none());
    assert_eq!(
        cells(fdt.find_node("/memory@80000000").unwrap(), "reg"),
        [0, 0x8000_0000, 0x4000_0000, 8, 0x20_0000, 0x7fe0_0000]
    );
    assert_eq!(
        DeviceTree::parse(&blob).unwrap().reservations,
        [region(0x8000_0000, 0x1_0000)]
    );
    // Stale initrd properties are removed, other children of /chosen are kept.
    let chosen = fdt.find_node("/chosen").unwrap();
    assert!(chosen.property("linux,initrd-start").is_none() && chosen.property("linux,initrd-end").is_none());
    assert_eq!(
        chosen.children().map(|node| node.name).collect::<Vec<_>>(),
        ["framebuffer"]
    );
    assert!(fdt.find_node("/__symbols__").is_none());
    // Names of firmware's are copied even if the specification does not allow them (2.2.1.1, 2.2.4.1).
    let modem = fdt.find_node("/4g-modem").unwrap();
    assert_eq!(cells(modem, "arm,cpu-registers-not-fw-configured"), [1]);
    assert!(
        fdt.find_node("/a-node-with-a-name-of-more-than-31-characters@1")
            .is_some()
    );
    // Only references to the ITS are removed.
    let frame = cells(fdt.find_node("/soc/msi-controller@1700000").unwrap(), "phandle")[0];
    let dma = fdt.find_node("/soc/bus@10000000/dma@3000").unwrap();
    assert_eq!(cells(dma, "msi-parent"), [frame, 1, 2]);
    assert!(
        fdt.find_node("/soc/bus@10000000/nic@4000")
            .unwrap()
            .property("msi-parent")
            .is_none()
    );
    let mixed = fdt.find_node("/soc/pcie@40000000").unwrap();
    assert_eq!(cells(mixed, "msi-map"), [0x8000, frame, 0, 0x8000]);
    assert_eq!(cells(mixed, "msi-map-mask"), [0xffff]);
    let pure = fdt.find_node("/soc/pcie@50000000").unwrap();
    assert!(pure.property("msi-map").is_none() && pure.property("msi-map-mask").is_none());
    // No bridge has a domain, so the new one has none; one-cell sizes; one GIC address cell, four interrupt
    // cells.
    let bridge = fdt.find_node("/pcie@c0000000").unwrap();
    assert!(bridge.property("linux,pci-domain").is_none());
    assert_eq!(cells(bridge, "reg"), [0, 0xc000_0000, ECAM_SIZE as u32]);
    let gic = cells(
        fdt.find_node("/soc/interrupt-controller@1800000").unwrap(),
        "phandle",
    )[0];
    assert_eq!(cells(bridge, "interrupt-map"), [0, 0, 0, 1, gic, 0, 0, 255, 4, 0]);
}

#[test]
fn not_an_spi() {
    let tree = DeviceTree::parse(SMP4).unwrap();
    for intid in [0, 31, 1020, u32::MAX] {
        let config = RootConfig { intid, ..config(&[]) };
        assert_eq!(root_dtb(&tree, &config), Err(RootDtbError::NotSpi(intid)));
    }
}

/// Returns the offset in `blob` of the structure block, and its length.
fn structure(blob: &[u8]) -> (usize, usize) {
    let word = |at: usize| u32::from_be_bytes(blob[at..at + 4].try_into().unwrap()) as usize;
    (word(8), word(36))
}

/// Renames a node or property of the same length in `blob`.
fn replace(blob: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let at = blob
        .windows(from.len())
        .position(|window| window == from)
        .expect("not found");
    let mut blob = blob.to_vec();
    blob[at..at + to.len()].copy_from_slice(to);
    blob
}

/// QEMU deletes nodes by overwriting them with NOPs, at the end of a parent too, where the `fdt` crate stops.
#[test]
fn nops_are_skipped() {
    let (start, length) = structure(SMP4);
    let mut blob = SMP4.to_vec();
    // The last tokens: END_NODE of a module, of /chosen, of the root, END. Overwrite one module node.
    let name = b"module@0x42000000\0";
    let at = (start..start + length)
        .find(|at| blob[*at..].starts_with(name))
        .unwrap()
        - 4;
    let end = start + length - 4 * 3;
    for token in blob[at..end].chunks_mut(4) {
        token.copy_from_slice(&4_u32.to_be_bytes());
    }
    let machine = machine(&blob);
    assert_eq!(machine.kernel, None);
    assert!(machine.ramdisk.is_some());
}

#[test]
fn missing_nodes_are_named() {
    let error = |blob: &[u8]| Machine::from_tree(&DeviceTree::parse(blob).unwrap()).unwrap_err();
    assert_eq!(
        error(&replace(SMP4, b"arm,gic-v3\0", b"arm,gic-v7\0")),
        MachineError::NoGic
    );
    assert_eq!(
        error(&replace(BARE, b"memory\0", b"nemory\0")),
        MachineError::NoMemory
    );
    assert_eq!(error(&replace(SMP4, b"cpus\0", b"cpuz\0")), MachineError::NoCpu);
    assert_eq!(
        error(&replace(BOARD, b"arm,psci-0.2", b"arm,psci-0.1")),
        MachineError::NoPsci
    );
    let error = error(&replace(SMP4, b"smc\0", b"abc\0"));
    assert_eq!(error.to_string(), "psci: bad property method");
}

#[test]
fn damaged_headers() {
    let parse = |blob: &[u8]| DeviceTree::parse(blob).unwrap_err();
    assert_eq!(parse(&[]), BlobError::Truncated);
    assert_eq!(parse(&[0; 64]), BlobError::Magic);
    assert_eq!(parse(&SMP4[..SMP4.len() - 1]), BlobError::Truncated);
    let with = |at: usize, value: u32| {
        let mut blob = SMP4.to_vec();
        blob[at..at + 4].copy_from_slice(&value.to_be_bytes());
        parse(&blob)
    };
    assert_eq!(with(4, 2 << 20 | 1), BlobError::TooLarge(2 << 20 | 1));
    assert_eq!(with(8, u32::MAX), BlobError::Truncated);
    assert_eq!(with(12, u32::MAX), BlobError::Truncated);
    assert_eq!(with(16, u32::MAX), BlobError::Truncated);
    assert_eq!(with(20, 16), BlobError::Version(16));
    assert_eq!(with(24, 18), BlobError::Version(17));
    assert_eq!(with(36, u32::MAX), BlobError::Truncated);
    let (start, length) = structure(SMP4);
    assert_eq!(with(start, 2), BlobError::Token { token: 2, offset: 0 });
    assert_eq!(
        with(start + length - 4, 7),
        BlobError::Token {
            token: 7,
            offset: length - 4
        }
    );
}

#[test]
fn nesting_is_bounded() {
    let nested = |depth: usize| {
        let mut writer = vm_fdt::FdtWriter::new().unwrap();
        let mut nodes = vec![writer.begin_node("").unwrap()];
        nodes.extend(
            (1..depth)
                .map(|_| writer.begin_node("n").unwrap())
                .collect::<Vec<_>>(),
        );
        for node in nodes.into_iter().rev() {
            writer.end_node(node).unwrap();
        }
        DeviceTree::parse(&writer.finish().unwrap())
    };
    assert!(nested(32).is_ok());
    assert_eq!(nested(33).unwrap_err(), BlobError::TooDeep);
}

/// Runs every reader on a blob that may hold anything.
fn read(blob: &[u8]) {
    let Ok(tree) = DeviceTree::parse(blob) else { return };
    if let Ok(machine) = Machine::from_tree(&tree) {
        let _ = machine.free_window(1 << 20, 1 << 20, 40);
        let _ = machine.free_spi(288);
    }
    let hidden = [region(0x4200_0000, 32 << 20)];
    if let Ok(root) = root_dtb(&tree, &config(&hidden)) {
        // What is written can be read.
        DeviceTree::parse(&root).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// A corrupted blob gives an error or another machine, never a panic.
    #[test]
    fn corrupted_blobs(
        which in 0..4_usize,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        words in prop::collection::vec((any::<prop::sample::Index>(), prop_oneof![0..10_u32, any::<u32>()]), 0..4),
        length in prop::option::weighted(0.1, any::<prop::sample::Index>()),
    ) {
        let mut blob = [SMP4, SMP8, BARE, BOARD][which].to_vec();
        for (at, value) in changes {
            let at = at.index(blob.len());
            blob[at] = value;
        }
        for (at, value) in words {
            let at = at.index(blob.len() / 4) * 4;
            blob[at..at + 4].copy_from_slice(&value.to_be_bytes());
        }
        if let Some(length) = length {
            blob.truncate(length.index(blob.len()));
        }
        read(&blob);
    }
}
