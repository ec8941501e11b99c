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
        device.ring(doorbell::ATTACH, |bar, offset| bar.write_u64(offset, address));
        let info = device.info();
        if info.attach_status != CommandStatus::Ok as u32 || info.shared_pa != address {
            return Err(Refusal {
                op: None,
                status: info.attach_status,
                detail: info.shared_pa,
            }
            .into());
        }
        // Memory decoding on. Then pulses: an interrupt needs no writes to configuration space, each of which
        // would be an exit.
        config
            .write_all_at(&PCI_COMMAND_MEMORY.to_le_bytes(), PCI_COMMAND)
            .map_err(|e| file("PCI command register", e))?;
        device.ring(doorbell::PULSES, |bar, offset| bar.write_u32(offset, 1));
        let width = ReadWidth::Four;
        let cpu = File::open(irq_cpu).ok();
        Ok((device, Interrupt { fd, width, cpu }))
    }
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
    fn ring(&self, doorbell: u16, store: impl Fn(&Bar, usize)) {
        let page = usize::try_from(doorbell::PAGE_OFFSET).unwrap_or(0);
        fence(Ordering::SeqCst);
        store(&self.bar, page + usize::from(doorbell));
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
        // A status that EL2 never returns, so that a doorbell without effect is not mistaken for success.
        let header = Header {
            status: u32::MAX,
            ..header
        };
        self.shared.write(shared::COMMAND, header.as_bytes());
        self.shared.write(shared::PAYLOAD, payload);
        self.ring(doorbell::COMMAND, |bar, offset| bar.write_u32(offset, 1));
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
        self.ring(doorbell::USED_BUFFER, |bar, at| {
            bar.write_u32(at, doorbell::used_buffer(zone, slot))
        });
    }

    fn console_input(&self, zone: u8) {
        self.ring(doorbell::CONSOLE_INPUT, |bar, offset| {
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
