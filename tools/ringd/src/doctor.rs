//! `ringctl doctor`: what this machine lacks to run zones, and what to do about it.
//!
//! Nothing is changed and nothing is needed: on a machine without hypervisor or daemon it says so. All paths hang off
//! a root directory, which the tests replace.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use ringvisor::abi::{ABI_VERSION, BAR_SIZE, MAGIC};
use serde::Serialize;

use crate::control::client::{Client, ClientError};
use crate::control::protocol::{InfoReport, Reply, Request};
use crate::host::cpus;
use crate::hv::mapping::Bar;
use crate::hv::pci;

/// What came of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it should be.
    Good,
    /// It works, but not as well as it could.
    Advice,
    /// Zones cannot be run.
    Wrong,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// How it is.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do.
    pub advice: Option<String>,
}

impl Check {
    fn good(name: &'static str, found: impl Into<String>) -> Self {
        Self {
            name,
            verdict: Verdict::Good,
            found: found.into(),
            advice: None,
        }
    }

    fn bad(
        name: &'static str,
        verdict: Verdict,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self {
            name,
            verdict,
            found: found.into(),
            advice: Some(advice.into()),
        }
    }

    fn wrong(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::bad(name, Verdict::Wrong, found, advice)
    }

    fn advice(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::bad(name, Verdict::Advice, found, advice)
    }
}

/// Options of the kernel that zones need, and what for.
const NEEDED: [(&str, &str); 6] = [
    ("UIO_PCI_GENERIC", "the control device's interrupt"),
    ("PCI_HOST_GENERIC", "the bridge that the control device is on"),
    ("HUGETLBFS", "memory of zones"),
    ("PROC_PAGE_MONITOR", "physical addresses of that memory"),
    ("HOTPLUG_CPU", "CPUs of zones"),
    ("UNIX", "the daemon's socket"),
];

/// The machine that is examined.
struct Machine<'a> {
    root: &'a Path,
    /// Release of the kernel.
    release: String,
    /// Architecture.
    architecture: String,
    privileged: bool,
}

/// Makes all checks, below `root` (`/` in earnest), with the daemon at `socket`.
#[must_use]
pub fn examine(root: &Path, socket: &Path) -> Vec<Check> {
    let name = rustix::system::uname();
    let machine = Machine {
        root,
        release: name.release().to_string_lossy().into_owned(),
        architecture: name.machine().to_string_lossy().into_owned(),
        privileged: rustix::process::geteuid().is_root(),
    };
    machine.examine(socket)
}

impl Machine<'_> {
    fn examine(&self, socket: &Path) -> Vec<Check> {
        let mut checks = vec![self.machine(), self.user()];
        checks.extend(self.hypervisor());
        checks.push(self.driver());
        checks.push(self.config());
        checks.push(self.huge_pages());
        checks.push(self.hugetlbfs());
        checks.push(self.cpus());
        checks.push(self.io_uring());
        checks.push(daemon(socket));
        checks
    }

    fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.root.join(path))
            .ok()
            .map(|text| text.trim().to_owned())
    }

    fn number(&self, path: &str) -> Option<u64> {
        self.read(path)?.parse().ok()
    }

    fn machine(&self) -> Check {
        let found = format!("Linux {} on {}", self.release, self.architecture);
        if self.architecture == "aarch64" {
            Check::good("machine", found)
        } else {
            Check::wrong("machine", found, "ringvisor's zones need an aarch64 machine")
        }
    }

    fn user(&self) -> Check {
        if self.privileged {
            Check::good("permissions", "root")
        } else {
            Check::wrong(
                "permissions",
                "not root",
                "run ringd, ringctl and this command as root: the daemon maps the control device, reads physical \
                 addresses from /proc/self/pagemap and takes CPUs offline",
            )
        }
    }

    fn hypervisor(&self) -> Vec<Check> {
        let directory = match pci::find(self.root) {
            Ok(directory) => directory,
            Err(error) => {
                let advice = "boot this Linux as ringvisor's root zone (README, \"Quick start\")";
                return vec![Check::wrong("control device", error.to_string(), advice)];
            }
        };
        let bound = match pci::bound_to(&directory) {
            Some(driver) if driver == pci::DRIVER => format!("{}, bound to {driver}", directory.display()),
            Some(driver) => {
                let found = format!("{} is held by {driver}", directory.display());
                let advice = format!(
                    "unbind it: echo {} >{}/driver/unbind",
                    name_of(&directory),
                    directory.display()
                );
                return vec![Check::wrong("control device", found, advice)];
            }
            None => format!("{}, not bound yet: ringd does that", directory.display()),
        };
        vec![Check::good("control device", bound), self.version(&directory)]
    }

    /// Magic and version of EL2, from the information page.
    fn version(&self, directory: &Path) -> Check {
        let name = "hypervisor";
        let path = directory.join("resource0");
        let of_one_release = "use hypervisor, ringd and ringctl of one release";
        let size = fs::metadata(&path).map_or(0, |file| file.len());
        if size < BAR_SIZE {
            let found = format!("BAR 0 of the control device has {size} bytes, expected {BAR_SIZE}");
            return Check::wrong(name, found, of_one_release);
        }
        if !self.privileged {
            return Check::advice(name, "version not known", "run this as root to have it compared");
        }
        let flags = i32::try_from(rustix::fs::OFlags::SYNC.bits()).unwrap_or(0);
        let file = File::options()
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open(&path);
        let bar = match file.and_then(|file| Bar::map(&file)) {
            Ok(bar) => bar,
            Err(error) => {
                let advice = "is the kernel locked down (lockdown=, Secure Boot)? ringd must map this file";
                return Check::wrong(name, format!("{}: {error}", path.display()), advice);
            }
        };
        let magic = bar.read_u64(0);
        let version = bar.read_u64(8) as u32;
        if magic != MAGIC {
            let found = format!("the information page begins with {magic:#018x}, expected {MAGIC:#018x}");
            return Check::wrong(name, found, of_one_release);
        }
        if version != ABI_VERSION {
            let found =
                format!("it speaks version {version} of the interface, this command version {ABI_VERSION}");
            return Check::wrong(name, found, of_one_release);
        }
        Check::good(name, format!("interface version {version}"))
    }

    fn driver(&self) -> Check {
        let name = "uio_pci_generic";
        if self.root.join("sys/bus/pci/drivers").join(pci::DRIVER).exists() {
            return Check::good(name, "loaded");
        }
        let modules = format!("lib/modules/{}", self.release);
        for (list, found) in [
            ("modules.builtin", "built in"),
            ("modules.dep", "there, not loaded: ringd loads it"),
        ] {
            let text = self.read(&format!("{modules}/{list}")).unwrap_or_default();
            if text.lines().any(|line| line.contains("/uio_pci_generic.ko")) {
                return Check::good(name, found);
            }
        }
        Check::wrong(
            name,
            format!("neither loaded nor in /{modules}"),
            "install the kernel's modules, or a kernel with CONFIG_UIO_PCI_GENERIC; Debian's linux-image-arm64 has it",
        )
    }

    /// The kernel's configuration, if it tells.
    fn options(&self) -> Option<(PathBuf, String)> {
        let compressed = self.root.join("proc/config.gz");
        if let Ok(file) = File::open(&compressed) {
            let mut text = String::new();
            // Ten times what a configuration has.
            let read = GzDecoder::new(file).take(4 << 20).read_to_string(&mut text);
            if read.is_ok() {
                return Some((compressed, text));
            }
        }
        let plain = self.root.join(format!("boot/config-{}", self.release));
        let text = fs::read_to_string(&plain).ok()?;
        Some((plain, text))
    }

    fn config(&self) -> Check {
        let name = "kernel options";
        let Some((path, text)) = self.options() else {
            let found = format!(
                "neither /proc/config.gz nor /boot/config-{} is there",
                self.release
            );
            return Check::advice(name, found, "nothing to do if everything else is good");
        };
        let has = |option: &str| {
            text.lines().any(|line| {
                let value = line
                    .strip_prefix("CONFIG_")
                    .and_then(|line| line.strip_prefix(option));
                matches!(value, Some("=y" | "=m"))
            })
        };
        let missing: Vec<String> = NEEDED
            .iter()
            .filter(|(option, _)| !has(option))
            .map(|(option, what)| format!("CONFIG_{option} ({what})"))
            .collect();
        if missing.is_empty() {
            return Check::good(name, format!("all there, in {}", path.display()));
        }
        Check::wrong(
            name,
            format!("{} lacks {}", path.display(), missing.join(", ")),
            "use a kernel that has them; Debian's linux-image-arm64 and linux-image-cloud-arm64 do",
        )
    }

    fn huge_pages(&self) -> Check {
        let name = "huge pages";
        let pool = "sys/kernel/mm/hugepages/hugepages-2048kB";
        let number = |file: &str| self.number(&format!("{pool}/{file}"));
        let (Some(total), Some(free)) = (number("nr_hugepages"), number("free_hugepages")) else {
            return Check::wrong(
                name,
                format!("/{pool} is not there"),
                "use a kernel with CONFIG_HUGETLBFS and pages of 4 KiB: zones' memory is made of 2 MiB pages",
            );
        };
        let meminfo = self.read("proc/meminfo").unwrap_or_default();
        let available = meminfo
            .lines()
            .find_map(|line| line.strip_prefix("MemAvailable:"));
        let kib: u64 = available
            .and_then(|line| line.split_whitespace().next()?.parse().ok())
            .unwrap_or(0);
        let found = format!("{free} of {total} free, and {} MiB of memory for more", kib >> 10);
        if free * 2048 + kib >= 64 << 10 {
            return Check::good(name, found);
        }
        Check::wrong(
            name,
            found,
            "free memory in root, stop a zone, or reserve pages at boot with hugepages=N on root's command line",
        )
    }

    fn hugetlbfs(&self) -> Check {
        let name = "hugetlbfs";
        let mounts = self.read("proc/self/mounts").unwrap_or_default();
        let mount = mounts
            .lines()
            .map(|line| line.split(' ').collect::<Vec<_>>())
            .find(|fields| fields.get(2) == Some(&"hugetlbfs"));
        if let Some(place) = mount.as_ref().and_then(|fields| fields.get(1)) {
            return Check::good(name, format!("mounted at {place}"));
        }
        let known = self.read("proc/filesystems").unwrap_or_default();
        if known.lines().any(|line| line.ends_with("hugetlbfs")) {
            return Check::good(name, "not mounted: ringd does that");
        }
        Check::wrong(
            name,
            "the kernel does not know it",
            "use a kernel with CONFIG_HUGETLBFS",
        )
    }

    fn cpus(&self) -> Check {
        let name = "CPUs";
        let cpus = match cpus::list(self.root) {
            Ok(cpus) => cpus,
            Err(error) => {
                let advice = "use a kernel with CONFIG_HOTPLUG_CPU on a machine with PSCI";
                return Check::wrong(name, format!("cannot be listed: {error}"), advice);
            }
        };
        let free: Vec<String> = cpus
            .iter()
            .filter(|cpu| cpu.online && cpu.number != 0)
            .map(|cpu| cpu.number.to_string())
            .collect();
        if free.is_empty() {
            return Check::wrong(
                name,
                format!("{} in all, none that a zone could have", cpus.len()),
                "root keeps CPU 0: stop a zone, bring CPUs online, or give the machine more",
            );
        }
        Check::good(
            name,
            format!("{} in all, {} for zones", cpus.len(), free.join(",")),
        )
    }

    fn io_uring(&self) -> Check {
        let name = "io_uring";
        match self.number("proc/sys/kernel/io_uring_disabled") {
            Some(0) | None => Check::good(name, "allowed"),
            Some(1) if self.privileged => Check::good(name, "allowed to root"),
            Some(level) => Check::advice(
                name,
                format!("turned off (kernel.io_uring_disabled is {level})"),
                "sysctl kernel.io_uring_disabled=0; until then disks use threads, which is slower",
            ),
        }
    }
}

fn name_of(directory: &Path) -> String {
    let name = directory.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

fn daemon(socket: &Path) -> Check {
    let name = "daemon";
    let ask = || -> Result<InfoReport, ClientError> {
        match Client::connect(socket)?.ask(&Request::Info)? {
            Reply::Info(info) => Ok(info),
            other => Err(ClientError::unexpected(&other)),
        }
    };
    let own = env!("CARGO_PKG_VERSION");
    match ask() {
        Ok(info) if info.ringd_version == own => {
            let InfoReport {
                ringd_version,
                ringd_pid,
                zones,
                ..
            } = info;
            Check::good(
                name,
                format!("{ringd_version}, process {ringd_pid}, {zones} zones"),
            )
        }
        Ok(info) => Check::wrong(
            name,
            format!("ringd is {}, ringctl {own}", info.ringd_version),
            "use ringd and ringctl of one release; a new ringd takes the zones of the old one over",
        ),
        Err(ClientError::NotRunning(_)) => Check::advice(name, "not running", "start it: ringd --daemonize"),
        Err(error) => Check::wrong(name, error.to_string(), "see ringd.log in its run directory"),
    }
}

/// The checks as text.
#[must_use]
pub fn text(checks: &[Check]) -> String {
    let mut text = String::new();
    for check in checks {
        let verdict = match check.verdict {
            Verdict::Good => "ok",
            Verdict::Advice => "note",
            Verdict::Wrong => "WRONG",
        };
        text.push_str(&format!("{verdict:<6} {:<16} {}\n", check.name, check.found));
        if let Some(advice) = &check.advice {
            text.push_str(&format!("       {:<16} -> {advice}\n", ""));
        }
    }
    let count = |verdict| checks.iter().filter(|check| check.verdict == verdict).count();
    let (wrong, notes) = (count(Verdict::Wrong), count(Verdict::Advice));
    text.push_str(&match wrong {
        0 => format!("zones can be run; {notes} notes\n"),
        _ => format!("zones cannot be run: {wrong} things are wrong\n"),
    });
    text
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

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
        let mut bar = vec![0; BAR_SIZE as usize];
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
    fn each_fault_is_told() {
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
        use std::io::Write;
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
}
