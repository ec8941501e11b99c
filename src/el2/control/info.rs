//! The information page: what EL2 shows root of itself, the CPUs and the zones (`ringvisor::abi::info`).

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use ringvisor::abi::command::CommandStatus;
use ringvisor::abi::info::{CpuInfo, InfoPage, OWNER_NONE, ZoneSummary};
use ringvisor::abi::{self, MAX_CPUS, MAX_ZONES, ROOT_ZONE, shared};
use ringvisor::addr::Pa;
use zerocopy::{FromBytes, IntoBytes};

use crate::el2::arch::sysreg;
use crate::el2::channel::{function, shared_page};
use crate::el2::mm::frames::{self, RegisterFrame};
use crate::el2::mm::heap;
use crate::el2::sync::{Mutex, Once};
use crate::el2::zone::registry;
use crate::el2::{cpu, stats};

struct Page {
    frame: Mutex<RegisterFrame>,
    /// Returns what is shown of root.
    root: fn() -> ZoneSummary,
}

static PAGE: Once<Page> = Once::new();
/// [`CommandStatus`] of the last ATTACH or DETACH.
static ATTACH_STATUS: AtomicU32 = AtomicU32::new(0);
/// The value that it was refused for.
static ATTACH_DETAIL: AtomicU64 = AtomicU64::new(0);

/// Allocates and fills the page. Returns its address, for root's stage 2, or `None` if there is no register
/// frame.
pub fn init(root: fn() -> ZoneSummary) -> Option<Pa> {
    let frame = RegisterFrame::new()?;
    let pa = frame.pa();
    PAGE.call_once(|| Page {
        frame: Mutex::new(frame),
        root,
    });
    refresh();
    Some(pa)
}

/// Sets how the last ATTACH or DETACH ended, for the next [`refresh`].
pub fn set_attach_status(status: CommandStatus, detail: u64) {
    ATTACH_STATUS.store(status as u32, Ordering::Relaxed);
    ATTACH_DETAIL.store(detail, Ordering::Relaxed);
}

/// Brings the page up to date. Only words that differ are stored.
pub fn refresh() {
    let Some(page) = PAGE.get() else { return };
    let frame = page.frame.lock();
    let (pages_total, pages_used) = frames::usage();
    let (heap_total, heap_used) = heap::usage();
    let (event_intid, event_interrupts) = function::interrupt();
    let mut version = [0; 16];
    for (to, from) in version.iter_mut().zip(env!("CARGO_PKG_VERSION").bytes()) {
        *to = from;
    }
    let mut info = InfoPage {
        magic: abi::MAGIC,
        abi_version: abi::ABI_VERSION,
        shared_size: shared::SIZE as u32,
        version,
        attach_epoch: shared_page::epoch(),
        attach_status: ATTACH_STATUS.load(Ordering::Relaxed),
        cpu_count: cpu::all().len() as u32,
        zone_count: MAX_ZONES as u32,
        pages_total: pages_total as u32,
        pages_used: pages_used as u32,
        heap_total: heap_total as u32,
        heap_used: heap_used as u32,
        event_intid,
        event_interrupts,
        counter_frequency: sysreg::read!("cntfrq_el0") as u32,
        log_level: log::max_level() as u32,
        shared_pa: shared_page::address().map_or(0, |page| page.0),
        trace_records: stats::records(),
        trace_mask: stats::mask(),
        attach_detail: ATTACH_DETAIL.load(Ordering::Relaxed),
        reserved: [0; 24],
        cpus: [CpuInfo {
            owner: OWNER_NONE,
            ..CpuInfo::default()
        }; MAX_CPUS],
        zones: [ZoneSummary::default(); MAX_ZONES],
    };
    for (slot, cpu) in info.cpus.iter_mut().zip(cpu::all()) {
        *slot = cpu.info();
    }
    for (number, slot) in info.zones.iter_mut().enumerate() {
        *slot = match number as u8 {
            ROOT_ZONE => (page.root)(),
            number => registry::summary(number),
        };
    }
    let words: &[u32] = FromBytes::ref_from_bytes(info.as_bytes()).unwrap_or_default();
    for (index, &value) in words.iter().enumerate() {
        if frame.get32(index * 4) != value {
            frame.set32(index * 4, value);
        }
    }
}
