//! Checks of root Linux, the control device and EL2: [`Machine`].

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use ringvisor::abi::{ABI_VERSION, MAGIC, SERVING_SIZE};

use super::check::Check;
use crate::host::{cpus, hugepages};
use crate::hv::mapping::Bar;
use crate::hv::pci;

/// Kernel options that zones need, and what for.
pub(super) const NEEDED: [(&str, &str); 6] = [
    ("UIO_PCI_GENERIC", "the control device's interrupt"),
    ("PCI_HOST_GENERIC", "the bridge that the control device is on"),
    ("HUGETLBFS", "memory of zones"),
    ("PROC_PAGE_MONITOR", "physical addresses of that memory"),
    ("HOTPLUG_CPU", "CPUs of zones"),
    ("UNIX", "the daemon's socket"),
];

/// The machine that is examined.
pub(super) struct Machine<'a> {
    /// Where `/` is.
    pub root: &'a Path,
    /// Release of the kernel.
    pub release: String,
    /// Architecture.
    pub architecture: String,
    /// Whether this process is root.
    pub privileged: bool,
}

impl<'a> Machine<'a> {
    /// Returns this machine, with all paths below `root`.
    pub fn new(root: &'a Path) -> Self {
        let name = rustix::system::uname();
        Self {
            root,
            release: name.release().to_string_lossy().into_owned(),
            architecture: name.machine().to_string_lossy().into_owned(),
            privileged: rustix::process::geteuid().is_root(),
        }
    }

    fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.root.join(path))
            .ok()
            .map(|text| text.trim().to_owned())
    }

    fn number(&self, path: &str) -> Option<u64> {
        self.read(path)?.parse().ok()
    }

    pub(super) fn machine(&self) -> Check {
        let found = format!("Linux {} on {}", self.release, self.architecture);
        if self.architecture == "aarch64" {
            Check::good("machine", found)
        } else {
            Check::wrong("machine", found, "ringvisor's zones need an aarch64 machine")
        }
    }

    pub(super) fn user(&self) -> Check {
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

    pub(super) fn driver(&self) -> Check {
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

    /// Returns the kernel's configuration, if it can be read.
    fn options(&self) -> Option<(PathBuf, String)> {
        let compressed = self.root.join("proc/config.gz");
        if let Ok(file) = File::open(&compressed) {
            let mut text = String::new();
            // Ten times the size of a configuration.
            let read = GzDecoder::new(file).take(4 << 20).read_to_string(&mut text);
            if read.is_ok() {
                return Some((compressed, text));
            }
        }
        let plain = self.root.join(format!("boot/config-{}", self.release));
        let text = fs::read_to_string(&plain).ok()?;
        Some((plain, text))
    }

    pub(super) fn config(&self) -> Check {
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

    pub(super) fn huge_pages(&self) -> Check {
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
        let kib = hugepages::available_memory(self.root).unwrap_or(0) >> 10;
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

    pub(super) fn hugetlbfs(&self) -> Check {
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

    pub(super) fn cpus(&self) -> Check {
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

    pub(super) fn io_uring(&self) -> Check {
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

impl Machine<'_> {
    pub(super) fn hypervisor(&self) -> Vec<Check> {
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

    /// Checks magic and version of EL2 in the information page.
    fn version(&self, directory: &Path) -> Check {
        let name = "hypervisor";
        let path = directory.join("resource0");
        let of_one_release = "use hypervisor, ringd and ringctl of one release";
        let size = fs::metadata(&path).map_or(0, |file| file.len());
        if size < SERVING_SIZE {
            let found = format!("BAR 0 of the control device has {size} bytes, expected {SERVING_SIZE}");
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
        let bar = match file.and_then(|file| Bar::map_serving(&file)) {
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
}

fn name_of(directory: &Path) -> String {
    let name = directory.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}
