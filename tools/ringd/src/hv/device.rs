//! The real [`Hypervisor`]: the control device's BAR, its interrupt, and the shared page in hugetlbfs.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{Ordering, fence};

use ringvirtio::ReadWidth;
use ringvisor::abi::command::{CommandStatus, Header, Op};
use ringvisor::abi::info::InfoPage;
use ringvisor::abi::{ABI_VERSION, MAGIC, doorbell, shared};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::mapping::{Bar, SharedPage};
use super::pci::{self, Function, PciError};
use super::{Hypervisor, Interrupt, Refusal};

/// Offset of the command register in PCI configuration space.
const PCI_COMMAND: u64 = 4;
/// Its bit for memory decoding.
const PCI_COMMAND_MEMORY: u16 = 1 << 1;

/// Why the daemon cannot attach.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// No usable control device.
    #[error(transparent)]
    Pci(#[from] PciError),
    /// A file cannot be opened or mapped.
    #[error("{what}: {cause}")]
    File {
        /// Its purpose.
        what: String,
        /// The system's error.
        cause: io::Error,
    },
    /// The device is not ringvisor's EL2.
    #[error("the control device's information page begins with {0:#018x}, expected {MAGIC:#018x}")]
    BadMagic(u64),
    /// Daemon and EL2 have different versions.
    #[error(
        "EL2 speaks version {0} of the interface, this daemon version {ABI_VERSION}: use those of one release"
    )]
    Version(u32),
    /// EL2 refuses the shared page.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The store had no effect.
    #[error("EL2 did not attach the shared page at {expected:#x}: its page is at {found:#x}")]
    NotAttached {
        /// Address of the daemon's page.
        expected: u64,
        /// Address of the page that EL2 has.
        found: u64,
    },
}

/// EL2 behind its control device.
pub struct ControlDevice {
    bar: Bar,
    shared: SharedPage,
    /// Guards the one command slot. Innermost lock: nothing is locked while it is held.
    slot: Mutex<()>,
}

/// The control device, claimed and mapped, before any command. This much can be done while another daemon is
/// attached.
pub struct Prepared {
    bar: Bar,
    page: SharedPage,
    /// The page's physical address.
    address: u64,
    function: Function,
}

/// Claims the control device and maps it, and the page in `shared_file` (2 MiB on hugetlbfs). `physical`
/// returns the page's physical address from its virtual one.
///
/// # Errors
/// See [`AttachError`].
pub fn prepare(
    root: &Path,
    shared_file: &File,
    physical: impl Fn(usize) -> io::Result<u64>,
) -> Result<Prepared, AttachError> {
    let function = pci::claim(root)?;
    let sync = i32::try_from(rustix::fs::OFlags::SYNC.bits()).unwrap_or(0);
    let bar = Bar::map(&open(&function.directory.join("resource0"), sync)?).map_err(|e| file("BAR 0", e))?;
    check_version(&bar)?;
    let page = SharedPage::map(shared_file).map_err(|e| file("shared page", e))?;
    let address = physical(page.address()).map_err(|e| file("/proc/self/pagemap", e))?;
    Ok(Prepared {
        bar,
        page,
        address,
        function,
    })
}

impl Prepared {
    /// Donates the shared page to EL2: from now on this process is the daemon.
    ///
    /// # Errors
    /// See [`AttachError`].
    pub fn attach(self) -> Result<(ControlDevice, Interrupt), AttachError> {
        let Self {
            bar,
            page,
            address,
            function:
                Function {
                    directory,
                    uio,
                    irq_cpu,
                },
        } = self;
        let config = open(&directory.join("config"), 0)?;
        let fd = open(&uio, 0)?.into();
        page.write(shared::HEADER, MAGIC.as_bytes());
        page.write(shared::HEADER + 8, ABI_VERSION.as_bytes());
        let device = ControlDevice {
            bar,
            shared: page,
            slot: Mutex::new(()),
        };
        device.ring_doorbell(doorbell::ATTACH, |bar, offset| bar.write_u64(offset, address));
        check_attached(&device.info(), address)?;
        // Memory decoding on. Then pulses: an interrupt needs no writes to configuration space, each of which
        // would be an exit.
        config
            .write_all_at(&PCI_COMMAND_MEMORY.to_le_bytes(), PCI_COMMAND)
            .map_err(|e| file("PCI command register", e))?;
        device.ring_doorbell(doorbell::PULSES, |bar, offset| bar.write_u32(offset, 1));
        let width = ReadWidth::Four;
        let cpu = File::open(irq_cpu).ok();
        Ok((device, Interrupt { fd, width, cpu }))
    }
}

/// Checks that the last attach succeeded, with the page at `address`.
fn check_attached(info: &InfoPage, address: u64) -> Result<(), AttachError> {
    if info.attach_status != CommandStatus::Ok as u32 {
        return Err(AttachError::Refused(Refusal {
            op: None,
            status: info.attach_status,
            detail: info.attach_detail,
        }));
    }
    if info.shared_pa != address {
        return Err(AttachError::NotAttached {
            expected: address,
            found: info.shared_pa,
        });
    }
    Ok(())
}

fn file(what: &str, cause: io::Error) -> AttachError {
    AttachError::File {
        what: what.to_owned(),
        cause,
    }
}

fn open(path: &Path, flags: i32) -> Result<File, AttachError> {
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flags)
        .open(path);
    opened.map_err(|cause| file(&path.display().to_string(), cause))
}

/// Magic and version come first in the page and never move, so they can be checked before anything else is
/// read.
fn check_version(bar: &Bar) -> Result<(), AttachError> {
    let magic = bar.read_u64(0);
    if magic != MAGIC {
        return Err(AttachError::BadMagic(magic));
    }
    let version = bar.read_u64(8) as u32;
    if version != ABI_VERSION {
        return Err(AttachError::Version(version));
    }
    Ok(())
}

impl ControlDevice {
    /// A doorbell: what was written to the shared page is visible before the store, and what EL2 wrote after
    /// it.
    fn ring_doorbell(&self, offset: u16, store: impl Fn(&Bar, usize)) {
        let page = usize::try_from(doorbell::PAGE_OFFSET).unwrap_or(0);
        fence(Ordering::SeqCst);
        store(&self.bar, page + usize::from(offset));
        fence(Ordering::SeqCst);
    }
}

impl Hypervisor for ControlDevice {
    fn info(&self) -> InfoPage {
        let mut words = [0_u64; size_of::<InfoPage>().div_ceil(8)];
        for (index, word) in words.iter_mut().enumerate() {
            *word = self.bar.read_u64(index * 8).to_le();
        }
        let parsed = InfoPage::read_from_prefix(words.as_bytes());
        parsed.map_or_else(|_| InfoPage::new_zeroed(), |(info, _)| info)
    }

    fn execute(&self, header: Header, payload: &[u8], result: &mut [u8]) -> Result<Header, Refusal> {
        let op = Op::try_from(header.op).ok();
        let too_large = Refusal {
            op,
            status: CommandStatus::BadArgument as u32,
            detail: payload.len() as u64,
        };
        if payload.len() > shared::PAYLOAD_SIZE || result.len() > shared::PAYLOAD_SIZE {
            return Err(too_large);
        }
        let _slot = self.slot.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        // A status that EL2 never gives, so that a doorbell that did nothing is not taken for success.
        let header = Header {
            status: u32::MAX,
            ..header
        };
        self.shared.write(shared::COMMAND, header.as_bytes());
        self.shared.write(shared::PAYLOAD, payload);
        self.ring_doorbell(doorbell::COMMAND, |bar, offset| bar.write_u32(offset, 1));
        let mut done = Header::default();
        self.shared.read(shared::COMMAND, done.as_mut_bytes());
        if done.status != CommandStatus::Ok as u32 {
            return Err(Refusal {
                op,
                status: done.status,
                detail: done.detail,
            });
        }
        self.shared.read(shared::PAYLOAD, result);
        Ok(done)
    }

    fn used_buffer(&self, zone: u8, slot: u8) {
        self.ring_doorbell(doorbell::USED_BUFFER, |bar, at| {
            bar.write_u32(at, doorbell::used_buffer(zone, slot))
        });
    }

    fn console_input(&self, zone: u8) {
        self.ring_doorbell(doorbell::CONSOLE_INPUT, |bar, offset| {
            bar.write_u32(offset, zone.into())
        });
    }

    fn bar_word(&self, offset: usize) -> u64 {
        self.bar.read_u64(offset)
    }

    fn shared(&self) -> &SharedPage {
        &self.shared
    }
}

#[cfg(test)]
mod tests {
    use ringvisor::abi::ABI_VERSION;

    use super::check_attached;
    use crate::hv::Hypervisor;
    use crate::hv::fake::FakeEl2;

    const BLOCK: u64 = 2 << 20;

    fn attach(el2: &FakeEl2, address: u64, version: u32) -> Result<(), String> {
        el2.attach(address, version);
        check_attached(&el2.info(), address).map_err(|error| error.to_string())
    }

    #[test]
    fn a_refused_attach_names_the_refused_value() {
        let el2 = FakeEl2::new(2).unwrap();
        assert_eq!(attach(&el2, 5 * BLOCK, ABI_VERSION), Ok(()));
        let error = attach(&el2, 6 * BLOCK + 0x1000, ABI_VERSION).unwrap_err();
        assert!(error.contains("0xc01000 is not 2 MiB-aligned"), "{error}");
        let error = attach(&el2, 5 * BLOCK, ABI_VERSION + 1).unwrap_err();
        assert!(
            error.contains(&format!("version {} ", ABI_VERSION + 1)),
            "{error}"
        );

        assert_eq!(attach(&el2, 5 * BLOCK, ABI_VERSION), Ok(()));
        let hv: &dyn Hypervisor = &el2;
        for cpu in [0, 1] {
            hv.zone_create("a", &[cpu], 0).unwrap();
        }
        let error = attach(&el2, 6 * BLOCK, ABI_VERSION).unwrap_err();
        assert!(error.contains("zones exist (2)"), "{error}");
        // A new daemon of the same machine has the same page.
        assert_eq!(attach(&el2, 5 * BLOCK, ABI_VERSION), Ok(()));
    }

    #[test]
    fn a_store_without_effect_is_not_taken_for_an_attach() {
        let el2 = FakeEl2::new(2).unwrap();
        el2.attach(5 * BLOCK, ABI_VERSION);
        let error = check_attached(&el2.info(), 6 * BLOCK).unwrap_err().to_string();
        assert!(
            error.contains("0xc00000") && error.contains("0xa00000"),
            "{error}"
        );
    }
}
