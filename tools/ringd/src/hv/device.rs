//! The real [`Hypervisor`]: the control device's BAR, its interrupt, and the shared page in hugetlbfs.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{Ordering, fence};

use anyhow::{Context as _, bail};
use parking_lot::Mutex;
use ringvirtio::ReadWidth;
use ringvisor::abi::command::{CommandStatus, Header, Op};
use ringvisor::abi::info::InfoPage;
use ringvisor::abi::{ABI_VERSION, MAGIC, doorbell, shared};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::mapping::{Bar, SharedPage};
use super::pci::{self, Function};
use super::{Hypervisor, Interrupt, Refusal};

/// Offset of the command register in PCI configuration space.
const PCI_COMMAND: u64 = 4;
/// Its bit for memory decoding.
const PCI_COMMAND_MEMORY: u16 = 1 << 1;

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
/// There is none, its files cannot be used, or EL2 has another version.
pub fn prepare(
    root: &Path,
    shared_file: &File,
    physical: impl Fn(usize) -> io::Result<u64>,
) -> anyhow::Result<Prepared> {
    let function = pci::claim(root)?;
    let sync = i32::try_from(rustix::fs::OFlags::SYNC.bits()).unwrap_or(0);
    let bar = Bar::map(&open(&function.directory.join("resource0"), sync)?).context("BAR 0")?;
    check_version(&bar)?;
    let page = SharedPage::map(shared_file).context("shared page")?;
    let address = physical(page.address()).context("/proc/self/pagemap")?;
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
    /// Its files cannot be used, or EL2 refuses the page.
    pub fn attach(self) -> anyhow::Result<(ControlDevice, Interrupt)> {
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
            .context("PCI command register")?;
        device.ring_doorbell(doorbell::PULSES, |bar, offset| bar.write_u32(offset, 1));
        let width = ReadWidth::Four;
        let cpu = File::open(irq_cpu).ok();
        Ok((device, Interrupt { fd, width, cpu }))
    }
}

/// Checks that the last attach succeeded, with the page at `address`.
fn check_attached(info: &InfoPage, address: u64) -> anyhow::Result<()> {
    if info.attach_status != CommandStatus::Ok as u32 {
        bail!(Refusal {
            op: None,
            status: info.attach_status,
            detail: info.attach_detail,
        });
    }
    let found = info.shared_pa;
    if found != address {
        bail!("EL2 did not attach the shared page at {address:#x}: its page is at {found:#x}");
    }
    Ok(())
}

fn open(path: &Path, flags: i32) -> anyhow::Result<File> {
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flags)
        .open(path);
    opened.with_context(|| path.display().to_string())
}

/// Checks that the control device is that of an EL2 of this version.
fn check_version(bar: &Bar) -> anyhow::Result<()> {
    let magic = bar.read_u64(0);
    if magic != MAGIC {
        bail!("the control device's information page begins with {magic:#018x}, expected {MAGIC:#018x}");
    }
    let version = bar.read_u64(8) as u32;
    if version != ABI_VERSION {
        bail!(
            "EL2 speaks version {version} of the interface, this daemon version {ABI_VERSION}: use those of one release"
        );
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
        let _slot = self.slot.lock();
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
