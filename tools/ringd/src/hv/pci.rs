//! Finding the control device in sysfs and giving it to `uio_pci_generic`.
//!
//! All paths are below a root directory, which the tests replace.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use ringvisor::abi::{PCI_DEVICE, PCI_VENDOR};

/// The driver that the control device is bound to.
pub const DRIVER: &str = "uio_pci_generic";
/// How long udev and the kernel may take to show `/dev/uioN`.
const NODE_TIMEOUT: Duration = Duration::from_secs(5);

/// The control device, bound and enabled.
#[derive(Debug, PartialEq, Eq)]
pub struct Function {
    /// Its directory in sysfs.
    pub directory: PathBuf,
    /// Its interrupt: `/dev/uioN`.
    pub uio: PathBuf,
    /// The file that names the CPU that takes it; absent in a kernel without
    /// CONFIG_GENERIC_IRQ_EFFECTIVE_AFF_MASK.
    pub irq_cpu: PathBuf,
}

/// Finds the function below `root` (`/` outside of tests), binds it and enables its memory.
///
/// # Errors
/// There is none, or it cannot be bound or enabled.
pub fn claim(root: &Path) -> anyhow::Result<Function> {
    let directory = find(root)?;
    bind(root, &directory)?;
    let enable = directory.join("enable");
    // Enables memory decoding; the kernel counts, so only if it is off.
    let shown = || enable.display().to_string();
    if fs::read_to_string(&enable).with_context(shown)?.trim() == "0" {
        fs::write(&enable, "1").with_context(shown)?;
    }
    let uio = uio_node(root, &directory)?;
    let irq = fs::read_to_string(directory.join("irq")).unwrap_or_default();
    let irq_cpu = root
        .join("proc/irq")
        .join(irq.trim())
        .join("effective_affinity_list");
    Ok(Function {
        directory,
        uio,
        irq_cpu,
    })
}

/// Returns the control device's directory in sysfs below `root`.
///
/// # Errors
/// It is not there.
pub fn find(root: &Path) -> anyhow::Result<PathBuf> {
    let devices = root.join("sys/bus/pci/devices");
    let number = |path: PathBuf| {
        let text = fs::read_to_string(path).ok()?;
        u16::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok()
    };
    let entries = fs::read_dir(&devices).into_iter().flatten();
    for entry in entries.flatten() {
        let device = entry.path();
        if number(device.join("vendor")) == Some(PCI_VENDOR)
            && number(device.join("device")) == Some(PCI_DEVICE)
        {
            return Ok(device);
        }
    }
    bail!(
        "no PCI function {PCI_VENDOR:04x}:{PCI_DEVICE:04x} in {}: this Linux does not run as ringvisor's root zone, or \
         its kernel lacks pci-host-generic (CONFIG_PCI_HOST_GENERIC)",
        devices.display()
    )
}

/// Returns the driver that a function is bound to.
pub fn bound_to(device: &Path) -> Option<String> {
    let driver = fs::read_link(device.join("driver")).ok()?;
    Some(driver.file_name()?.to_string_lossy().into_owned())
}

fn cannot_bind(device: &Path, cause: &str) -> anyhow::Error {
    let device = device.display();
    anyhow!("cannot bind {device} to {DRIVER}: {cause} (is the module there? `modprobe {DRIVER}`)")
}

fn bind(root: &Path, device: &Path) -> anyhow::Result<()> {
    let failed = |cause: String| cannot_bind(device, &cause);
    match bound_to(device) {
        Some(driver) if driver == DRIVER => return Ok(()),
        Some(driver) => return Err(failed(format!("{driver} holds it"))),
        None => {}
    }
    let driver = root.join("sys/bus/pci/drivers").join(DRIVER);
    if !driver.exists() {
        let modprobe = std::process::Command::new("modprobe").arg(DRIVER).output();
        if !driver.exists() {
            let said = match modprobe {
                Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
                Err(error) => format!("modprobe: {error}"),
            };
            return Err(failed(said));
        }
    }
    let write = |path: PathBuf, text: &str| {
        fs::write(&path, text).map_err(|error| failed(format!("{}: {error}", path.display())))
    };
    // By name, not by `new_id`: an ID would stay in the driver, and adding it twice is an error.
    write(device.join("driver_override"), DRIVER)?;
    let name = device.file_name().unwrap_or_default().to_string_lossy();
    write(driver.join("bind"), &name)
}

/// Waits for the device node of the function's interrupt and returns it.
fn uio_node(root: &Path, device: &Path) -> anyhow::Result<PathBuf> {
    let directory = device.join("uio");
    let name = fs::read_dir(&directory)
        .ok()
        .and_then(|mut entries| entries.next()?.ok())
        .map(|entry| entry.file_name())
        .ok_or_else(|| cannot_bind(device, "the driver made no uio device"))?;
    let node = root.join("dev").join(name);
    let deadline = Instant::now() + NODE_TIMEOUT;
    while !node.exists() {
        if Instant::now() > deadline {
            return Err(cannot_bind(
                device,
                &format!("{} does not appear", node.display()),
            ));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(node)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::{DRIVER, Function, claim};
    use std::os::unix::fs::symlink;

    /// A sysfs with one other function and the control device.
    fn sysfs() -> (tempfile::TempDir, PathBuf) {
        let root = tempfile::tempdir().unwrap();
        let other = root.path().join("sys/bus/pci/devices/0000:00:01.0");
        fs::create_dir_all(&other).unwrap();
        fs::write(other.join("vendor"), "0x1af4\n").unwrap();
        fs::write(other.join("device"), "0x1000\n").unwrap();
        let device = root.path().join("sys/bus/pci/devices/0001:00:00.0");
        fs::create_dir_all(device.join("uio/uio3")).unwrap();
        fs::write(device.join("vendor"), "0x1209\n").unwrap();
        fs::write(device.join("device"), "0x7276\n").unwrap();
        fs::write(device.join("enable"), "0\n").unwrap();
        fs::write(device.join("irq"), "19\n").unwrap();
        fs::create_dir_all(root.path().join("dev")).unwrap();
        fs::write(root.path().join("dev/uio3"), "").unwrap();
        (root, device)
    }

    #[test]
    fn the_device_is_found_bound_and_enabled() {
        let (root, device) = sysfs();
        let driver = root.path().join("sys/bus/pci/drivers/uio_pci_generic");
        fs::create_dir_all(&driver).unwrap();
        let function = claim(root.path()).unwrap();
        assert_eq!(
            function,
            Function {
                directory: device.clone(),
                uio: root.path().join("dev/uio3"),
                irq_cpu: root.path().join("proc/irq/19/effective_affinity_list"),
            }
        );
        assert_eq!(
            fs::read_to_string(device.join("driver_override")).unwrap(),
            DRIVER
        );
        assert_eq!(fs::read_to_string(driver.join("bind")).unwrap(), "0001:00:00.0");
        assert_eq!(fs::read_to_string(device.join("enable")).unwrap(), "1");
    }

    #[test]
    fn a_bound_device_is_left_as_it_is() {
        let (root, device) = sysfs();
        symlink("../../drivers/uio_pci_generic", device.join("driver")).unwrap();
        fs::write(device.join("enable"), "1\n").unwrap();
        claim(root.path()).unwrap();
        assert!(!device.join("driver_override").exists());
        assert_eq!(fs::read_to_string(device.join("enable")).unwrap(), "1\n");
    }

    #[test]
    fn another_driver_is_named() {
        let (root, device) = sysfs();
        symlink("../../drivers/vfio-pci", device.join("driver")).unwrap();
        let message = claim(root.path()).unwrap_err().to_string();
        assert!(message.contains("vfio-pci holds it"), "{message}");
    }

    #[test]
    fn a_machine_without_the_control_device_is_reported() {
        let root = tempfile::tempdir().unwrap();
        let message = claim(root.path()).unwrap_err().to_string();
        assert!(message.contains("no PCI function 1209:7276"), "{message}");
    }
}
