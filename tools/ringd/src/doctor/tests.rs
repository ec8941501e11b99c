//! Each fault of a machine is found and explained.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;

use ringvisor::abi::{ABI_VERSION, MAGIC, SERVING_SIZE};

use super::host::{Machine, NEEDED};
use super::{Check, Verdict, text};

const RELEASE: &str = "6.12.1-test";

/// A machine with everything.
fn machine() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let put = |path: &str, text: &[u8]| {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    let device = "sys/bus/pci/devices/0001:00:00.0";
    put(&format!("{device}/vendor"), b"0x1209\n");
    put(&format!("{device}/device"), b"0x7276\n");
    let mut bar = vec![0; SERVING_SIZE as usize];
    bar[..8].copy_from_slice(&MAGIC.to_le_bytes());
    bar[8..12].copy_from_slice(&ABI_VERSION.to_le_bytes());
    put(&format!("{device}/resource0"), &bar);
    fs::create_dir_all(root.path().join("sys/bus/pci/drivers/uio_pci_generic")).unwrap();
    symlink(
        "../../drivers/uio_pci_generic",
        root.path().join(device).join("driver"),
    )
    .unwrap();
    let options: String = NEEDED
        .iter()
        .map(|(option, _)| format!("CONFIG_{option}=m\n"))
        .collect();
    put(&format!("boot/config-{RELEASE}"), options.as_bytes());
    let pool = "sys/kernel/mm/hugepages/hugepages-2048kB";
    put(&format!("{pool}/nr_hugepages"), b"40\n");
    put(&format!("{pool}/free_hugepages"), b"39\n");
    put("proc/meminfo", b"MemTotal: 9 kB\nMemAvailable: 1048576 kB\n");
    put("proc/self/mounts", b"none /dev/hugepages hugetlbfs rw 0 0\n");
    put("proc/filesystems", b"nodev\thugetlbfs\n");
    put("sys/devices/system/cpu/present", b"0-1\n");
    for cpu in 0..2 {
        put(&format!("sys/devices/system/cpu/cpu{cpu}/online"), b"1\n");
        put(
            &format!("sys/devices/system/cpu/cpu{cpu}/of_node/reg"),
            &(cpu as u64).to_be_bytes(),
        );
    }
    root
}

fn check(root: &Path, architecture: &str) -> Vec<Check> {
    let machine = Machine {
        root,
        release: RELEASE.into(),
        architecture: architecture.into(),
        privileged: true,
    };
    machine.examine(&root.join("sock"))
}

fn of<'a>(checks: &'a [Check], name: &str) -> &'a Check {
    checks.iter().find(|check| check.name == name).unwrap()
}

#[test]
fn a_machine_with_everything_is_good() {
    let root = machine();
    let checks = check(root.path(), "aarch64");
    let bad: Vec<&Check> = checks
        .iter()
        .filter(|check| check.verdict != Verdict::Good && check.name != "daemon")
        .collect();
    assert!(bad.is_empty(), "{bad:?}");
    assert_eq!(of(&checks, "daemon").found, "not running");
    assert_eq!(of(&checks, "CPUs").found, "2 in all, 1 for zones");
    assert!(text(&checks).ends_with("zones can be run; 1 notes\n"));
}

#[test]
fn where_nothing_is_everything_is_explained() {
    let root = tempfile::tempdir().unwrap();
    let checks = check(root.path(), "x86_64");
    for name in [
        "machine",
        "control device",
        "uio_pci_generic",
        "huge pages",
        "hugetlbfs",
        "CPUs",
    ] {
        let check = of(&checks, name);
        assert_eq!(check.verdict, Verdict::Wrong, "{check:?}");
        assert!(check.advice.is_some());
    }
    assert!(text(&checks).contains("zones cannot be run: 6 things are wrong"));
}

#[test]
fn each_fault_is_reported() {
    let root = machine();
    let path = |name: &str| root.path().join(name);
    let device = "sys/bus/pci/devices/0001:00:00.0";
    let change = |name: &str, text: &[u8], expected: &str, said: &str| {
        let before = fs::read(path(name)).unwrap();
        fs::write(path(name), text).unwrap();
        let checks = check(root.path(), "aarch64");
        let found = of(&checks, expected);
        assert_ne!(found.verdict, Verdict::Good, "{found:?}");
        assert!(found.found.contains(said), "{found:?}");
        fs::write(path(name), before).unwrap();
    };
    let mut other = fs::read(path(&format!("{device}/resource0"))).unwrap();
    other[8] = 77;
    change(
        &format!("{device}/resource0"),
        &other,
        "hypervisor",
        "version 77 of the interface",
    );
    other[0] = 0;
    change(
        &format!("{device}/resource0"),
        &other,
        "hypervisor",
        "expected 0x",
    );
    change(
        &format!("{device}/resource0"),
        &other[..4096],
        "hypervisor",
        "4096 bytes",
    );
    change(
        &format!("boot/config-{RELEASE}"),
        b"CONFIG_UNIX=y\n# CONFIG_HUGETLBFS is not set\n",
        "kernel options",
        "CONFIG_HUGETLBFS (memory of zones)",
    );
    fs::write(
        path("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages"),
        "0\n",
    )
    .unwrap();
    change(
        "proc/meminfo",
        b"MemAvailable: 4096 kB\n",
        "huge pages",
        "0 of 40 free",
    );
    change(
        "sys/devices/system/cpu/cpu1/online",
        b"0\n",
        "CPUs",
        "none that a zone",
    );
    fs::create_dir_all(path("proc/sys/kernel")).unwrap();
    fs::write(path("proc/sys/kernel/io_uring_disabled"), "2\n").unwrap();
    assert_eq!(
        of(&check(root.path(), "aarch64"), "io_uring").verdict,
        Verdict::Advice
    );
    fs::remove_file(path(&format!("{device}/driver"))).unwrap();
    symlink("../../drivers/vfio-pci", path(&format!("{device}/driver"))).unwrap();
    let checks = check(root.path(), "aarch64");
    assert!(of(&checks, "control device").found.contains("held by vfio-pci"));
}

#[test]
fn a_compressed_configuration_is_read() {
    let root = machine();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(b"CONFIG_UNIX=y\n").unwrap();
    fs::write(root.path().join("proc/config.gz"), gzip.finish().unwrap()).unwrap();
    let checks = check(root.path(), "aarch64");
    let found = of(&checks, "kernel options");
    assert!(
        found.found.contains("config.gz lacks CONFIG_UIO_PCI_GENERIC"),
        "{found:?}"
    );
}
