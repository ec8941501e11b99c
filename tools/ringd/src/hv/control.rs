//! The control page of the control device: attaching, and the commands that make, feed and end zones. It is
//! the broker's; a process that serves zones does not map it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{Ordering, fence};

use anyhow::{Context as _, bail};
use parking_lot::Mutex;
use ringvisor::abi::command::{CONTROL_PAYLOAD_SIZE, CommandStatus, Header, Op, PAYLOAD, ZoneInfo};
use ringvisor::abi::info::InfoPage;
use ringvisor::abi::{ABI_VERSION, MAGIC, MAX_ZONES, ROOT_ZONE, doorbell, shared};
use zerocopy::{FromZeros, IntoBytes};

use super::device::{check_version, open};
use super::mapping::{Bar, SharedPage};
use super::{Control, Refusal, pci, read_info, text};

/// Offset of the command register in PCI configuration space.
const PCI_COMMAND: u64 = 4;
/// Its bit for memory decoding.
const PCI_COMMAND_MEMORY: u16 = 1 << 1;

/// EL2 behind the control page.
pub struct ControlPage {
    bar: Bar,
    /// Guards the one command slot. Innermost lock: nothing is locked while it is held.
    slot: Mutex<()>,
    /// Configuration space.
    config: File,
    shared: SharedPage,
    /// The shared page's physical address.
    address: u64,
}

impl ControlPage {
    /// Claims the control device and maps it, and the page in `shared_file` (2 MiB on hugetlbfs). `physical`
    /// returns the page's physical address from its virtual one. This much can be done while another daemon
    /// is attached.
    ///
    /// # Errors
    /// There is none, its files cannot be used, or EL2 has another version.
    pub fn prepare(
        root: &Path,
        shared_file: &File,
        physical: impl Fn(usize) -> io::Result<u64>,
    ) -> anyhow::Result<Self> {
        let directory = pci::claim(root)?.directory;
        let sync = i32::try_from(rustix::fs::OFlags::SYNC.bits()).unwrap_or(0);
        let resource = open(&directory.join("resource0"), true, sync)?;
        // EL2 of another version may have a smaller BAR.
        check_version(&Bar::map_serving(&resource).context("BAR 0")?)?;
        let bar = Bar::map_all(&resource).context("BAR 0")?;
        let shared = SharedPage::map(shared_file).context("shared page")?;
        let address = physical(shared.address()).context("/proc/self/pagemap")?;
        Ok(Self {
            bar,
            slot: Mutex::new(()),
            config: open(&directory.join("config"), true, 0)?,
            shared,
            address,
        })
    }

    /// Donates the shared page to EL2: from now on the worker of this broker is the daemon.
    ///
    /// # Errors
    /// EL2 refuses the page.
    pub fn attach(&self) -> anyhow::Result<()> {
        self.shared.write(shared::HEADER, MAGIC.as_bytes());
        self.shared.write(shared::HEADER + 8, ABI_VERSION.as_bytes());
        self.ring_doorbell(|| {
            self.bar.write_u64(register(doorbell::ATTACH), self.address);
        });
        check_attached(&read_info(|offset| self.bar.read_u64(offset)), self.address)?;
        // Memory decoding on. Then pulses: an interrupt needs no writes to configuration space, each of which
        // would be an exit.
        self.config
            .write_all_at(&PCI_COMMAND_MEMORY.to_le_bytes(), PCI_COMMAND)
            .context("PCI command register")?;
        self.ring_doorbell(|| self.bar.write_u32(register(doorbell::PULSES), 1));
        Ok(())
    }

    /// A doorbell: what was written before is visible before the store, and what EL2 wrote after it.
    fn ring_doorbell(&self, store: impl Fn()) {
        fence(Ordering::SeqCst);
        store();
        fence(Ordering::SeqCst);
    }

    fn write_slot(&self, offset: usize, bytes: &[u8]) {
        let base = offset_of(doorbell::CONTROL_SLOT) + offset;
        for (index, chunk) in bytes.chunks(8).enumerate() {
            let mut word = [0; 8];
            word.iter_mut().zip(chunk).for_each(|(to, from)| *to = *from);
            self.bar.write_u64(base + index * 8, u64::from_le_bytes(word));
        }
    }

    fn read_slot(&self, offset: usize, bytes: &mut [u8]) {
        let base = offset_of(doorbell::CONTROL_SLOT) + offset;
        for (index, chunk) in bytes.chunks_mut(8).enumerate() {
            let word = self.bar.read_u64(base + index * 8).to_le_bytes();
            chunk.iter_mut().zip(word).for_each(|(to, from)| *to = from);
        }
    }
}

fn offset_of(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

/// Returns the offset in BAR 0 of a register of the control page.
fn register(register: u16) -> usize {
    offset_of(doorbell::CONTROL_OFFSET) + usize::from(register)
}

impl Control for ControlPage {
    fn command(&self, header: Header, payload: &[u8], result: &mut [u8]) -> Result<Header, Refusal> {
        let op = Op::try_from(header.op).ok();
        let refused = |status, detail| Refusal { op, status, detail };
        if payload.len() > CONTROL_PAYLOAD_SIZE || result.len() > CONTROL_PAYLOAD_SIZE {
            return Err(refused(CommandStatus::BadArgument as u32, payload.len() as u64));
        }
        let _slot = self.slot.lock();
        // A status that EL2 never gives, so that a doorbell that did nothing is not taken for success.
        let header = Header {
            status: u32::MAX,
            ..header
        };
        self.write_slot(0, header.as_bytes());
        self.write_slot(PAYLOAD, payload);
        self.ring_doorbell(|| self.bar.write_u32(register(doorbell::COMMAND), 1));
        let mut done = Header::default();
        self.read_slot(0, done.as_mut_bytes());
        if done.status != CommandStatus::Ok as u32 {
            return Err(refused(done.status, done.detail));
        }
        self.read_slot(PAYLOAD, result);
        Ok(done)
    }
}

impl dyn Control + '_ {
    /// Returns the name of a zone that EL2 has.
    pub fn zone_name(&self, zone: u8) -> Option<String> {
        let header = Header {
            op: Op::ZoneInfo as u32,
            zone: zone.into(),
            ..Header::default()
        };
        let mut info = ZoneInfo::new_zeroed();
        self.command(header, &[], info.as_mut_bytes()).ok()?;
        Some(text(&info.name))
    }

    /// Whether EL2 has a zone of this name.
    pub fn has_zone(&self, name: &str) -> bool {
        (0..MAX_ZONES as u8).any(|zone| zone != ROOT_ZONE && self.zone_name(zone).as_deref() == Some(name))
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
