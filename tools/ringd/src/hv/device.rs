//! The real [`Hypervisor`]: the serving part of the control device's BAR, its interrupt, and the shared page
//! in hugetlbfs.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use anyhow::{Context as _, bail};
use parking_lot::Mutex;
use ringvirtio::ReadWidth;
use ringvisor::abi::command::{CommandStatus, Header, Op};
use ringvisor::abi::info::InfoPage;
use ringvisor::abi::{ABI_VERSION, MAGIC, doorbell, shared};
use zerocopy::IntoBytes;

use super::mapping::{Bar, SharedPage};
use super::{Control, Hypervisor, Interrupt, Refusal, pci, read_info};

/// EL2 behind its control device.
pub struct ControlDevice {
    bar: Bar,
    shared: SharedPage,
    /// Guards the one command slot. Innermost lock: nothing is locked while it is held.
    slot: Mutex<()>,
    /// Executes the other commands.
    control: Arc<dyn Control>,
}

/// What serves zones of the control device, mapped, before any command. This much can be done while another
/// daemon is attached.
pub struct Prepared {
    bar: Bar,
    shared: SharedPage,
    interrupt: Interrupt,
}

/// Maps the serving part of the control device, which the broker has claimed, and the page in `shared_file`
/// (2 MiB on hugetlbfs). No descriptor of the device is kept but one of its interrupt, for reading.
///
/// # Errors
/// There is none, its files cannot be used, or EL2 has another version.
pub fn prepare(root: &Path, shared_file: &File) -> anyhow::Result<Prepared> {
    let function = pci::claim(root)?;
    let sync = i32::try_from(rustix::fs::OFlags::SYNC.bits()).unwrap_or(0);
    let resource = open(&function.directory.join("resource0"), true, sync)?;
    let bar = Bar::map_serving(&resource).context("BAR 0")?;
    check_version(&bar)?;
    let shared = SharedPage::map(shared_file).context("shared page")?;
    // For reading alone: through a descriptor for writing, newer kernels map the whole BAR.
    let fd = open(&function.uio, false, 0)?.into();
    Ok(Prepared {
        bar,
        shared,
        interrupt: Interrupt {
            fd,
            width: ReadWidth::Four,
            cpu: File::open(function.irq_cpu).ok(),
        },
    })
}

impl Prepared {
    /// Returns EL2, which the broker has attached to, and the control device's interrupt. `control` executes
    /// the commands that do not serve zones.
    pub fn attached(self, control: Arc<dyn Control>) -> (ControlDevice, Interrupt) {
        let device = ControlDevice {
            bar: self.bar,
            shared: self.shared,
            slot: Mutex::new(()),
            control,
        };
        (device, self.interrupt)
    }
}

pub(super) fn open(path: &Path, write: bool, flags: i32) -> anyhow::Result<File> {
    let opened = OpenOptions::new()
        .read(true)
        .write(write)
        .custom_flags(flags)
        .open(path);
    opened.with_context(|| path.display().to_string())
}

/// Checks that the control device is that of an EL2 of this version.
pub(super) fn check_version(bar: &Bar) -> anyhow::Result<()> {
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
        read_info(|offset| self.bar.read_u64(offset))
    }

    fn execute(&self, header: Header, payload: &[u8], result: &mut [u8]) -> Result<Header, Refusal> {
        let op = Op::try_from(header.op).ok();
        if op.is_some_and(|op| !op.serves()) {
            return self.control.command(header, payload, result);
        }
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
