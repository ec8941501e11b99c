//! Checks of the control device and of EL2.

use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use ringvisor::abi::{ABI_VERSION, BAR_SIZE, MAGIC};

use super::check::Check;
use super::host::Machine;
use crate::hv::mapping::Bar;
use crate::hv::pci;

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
}

fn name_of(directory: &Path) -> String {
    let name = directory.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}
