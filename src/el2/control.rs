//! The control device: configuration space, information page, doorbells and commands (`ringvisor::abi`).
//!
//! Everything that comes from root is hostile: a command is copied word by word into EL2's memory and checked
//! there; the shared page is only ever a source and a sink of plain words.

use alloc::string::String;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use log::{info, warn};
use ringvisor::abi::command::{self, CommandStatus, Header, Op};
use ringvisor::abi::counters::CpuEvent;
use ringvisor::abi::info::{CpuInfo, InfoPage, OWNER_NONE, ZoneSummary};
use ringvisor::abi::trace::Kind;
use ringvisor::abi::{self, MAX_CPUS, MAX_ZONES, ROOT_ZONE, doorbell, shared};
use ringvisor::addr::{BLOCK_SIZE, Pa};
use ringvisor::pci::{ConfigSpace, Effect, Page};
use ringvisor::ring::ZoneWindow;
use ringvisor::syndrome::Width;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use super::arch::sysreg;
use super::mm::frames::RegisterFrame;
use super::mm::{blocks, frames, heap, stage1};
use super::sync::{Mutex, Once};
use super::{cpu, gic, stats, zone};

mod exec;

/// The frames that root sees.
pub struct Pages {
    /// Configuration space of the function.
    pub config: Pa,
    /// All ones.
    pub ones: Pa,
    /// The information page.
    pub info: Pa,
}

struct Function {
    space: ConfigSpace,
    frame: RegisterFrame,
}

struct Device {
    function: Mutex<Function>,
    info: Mutex<RegisterFrame>,
    /// One command at a time.
    commands: Mutex<()>,
    intid: u32,
    bells: AtomicU32,
    /// Physical address of the attached shared page, 0 for none.
    shared: AtomicU64,
    epoch: AtomicU32,
    attach_status: AtomicU32,
}

static DEVICE: Once<Device> = Once::new();

impl Device {
    /// Changes configuration space. INTx is raised without the lock, for the distributor is slow: if root disables it
    /// meanwhile, it comes a moment too late.
    fn change<T>(&self, change: impl FnOnce(&mut ConfigSpace, &mut FramePage<'_>) -> T) -> T {
        let mut function = self.function.lock();
        let Function { space, frame } = &mut *function;
        change(space, &mut FramePage(frame))
    }
}

struct FramePage<'a>(&'a RegisterFrame);

impl Page for FramePage<'_> {
    fn store(&mut self, offset: u16, value: u32) {
        self.0.set32(usize::from(offset), value);
    }
}

/// A refused command: why, and the value complained of.
pub type Refusal = (CommandStatus, u64);

/// Builds the device; its frames live as long as the machine.
pub fn init(ecam: Pa, bar: Pa, intid: u32) -> Result<Pages, String> {
    let frame = || RegisterFrame::new().ok_or("no register frame for the control device");
    let (config, ones, info) = (frame()?, frame()?, frame()?);
    for offset in (0..4096).step_by(4) {
        ones.set32(offset, u32::MAX);
    }
    let space = ConfigSpace::new(bar);
    space.fill(&mut FramePage(&config));
    let pages = Pages {
        config: config.pa(),
        ones: ones.pa(),
        info: info.pa(),
    };
    // Mapped into root for good.
    core::mem::forget(ones);
    let _ = ecam;
    DEVICE.call_once(|| Device {
        function: Mutex::new(Function { space, frame: config }),
        info: Mutex::new(info),
        commands: Mutex::new(()),
        intid,
        bells: AtomicU32::new(0),
        shared: AtomicU64::new(0),
        epoch: AtomicU32::new(0),
        attach_status: AtomicU32::new(0),
    });
    refresh();
    Ok(pages)
}

/// Wakes the daemon: raises INTx.
pub fn ring_bell() {
    let Some(device) = DEVICE.get() else { return };
    if device.change(|space, page| space.assert_intx(page)) == Effect::RaiseIntx {
        device.bells.fetch_add(1, Ordering::Relaxed);
        stats::count(CpuEvent::Bells);
        stats::record(Kind::EventInterrupt, ROOT_ZONE, 0, 0, 0);
        gic::set_pending(device.intid);
    }
}

/// A store to [`doorbell::PULSES`].
fn set_pulses(pulses: bool) {
    let Some(device) = DEVICE.get() else { return };
    if device.change(|space, page| space.set_pulses(page, pulses)) == Effect::RaiseIntx {
        device.bells.fetch_add(1, Ordering::Relaxed);
        gic::set_pending(device.intid);
    }
}

/// A store of root's to configuration space; `offset` in the whole of it. Only function 0 of device 0 exists.
pub fn config_write(offset: u32, width: Width, value: u64) {
    let (Some(device), Ok(offset)) = (DEVICE.get(), u16::try_from(offset)) else {
        return;
    };
    if offset >= 4096 {
        return;
    }
    let raise = device.change(|space, page| {
        let effect = space.write(page, offset, width.bytes() as u8, value);
        if effect == Effect::IntxMasked {
            // Linux's handler has noted the interrupt.
            space.deassert_intx(page);
        }
        effect == Effect::RaiseIntx
    });
    if raise {
        device.bells.fetch_add(1, Ordering::Relaxed);
        gic::set_pending(device.intid);
    }
}

/// A store of root's to BAR 0.
pub fn bar_write(offset: u32, width: Width, value: u64) {
    let Some(register) = offset.checked_sub(doorbell::PAGE_OFFSET as u32) else {
        return;
    };
    match (register as u16, width) {
        (doorbell::USED_BUFFER, Width::Word) => {
            if let Some((number, slot)) = doorbell::parse_used_buffer(value as u32) {
                stats::count(CpuEvent::Doorbells);
                stats::record_trap(Kind::Doorbell, number, slot, 0);
                zone::with(number, |zone| zone.used_buffer(usize::from(slot)));
            }
        }
        (doorbell::CONSOLE_INPUT, Width::Word) => {
            if let Ok(number) = u8::try_from(value) {
                zone::with(number, zone::Zone::console_input);
            }
        }
        (doorbell::PULSES, Width::Word) => set_pulses(value as u32 == 1),
        (doorbell::COMMAND, Width::Word) => run_command(),
        (doorbell::ATTACH, Width::Double) => finish_attach(attach(Pa(value))),
        (doorbell::DETACH, Width::Word) => finish_attach(detach()),
        _ => {}
    }
}

fn finish_attach(result: Result<(), Refusal>) {
    if let Some(device) = DEVICE.get() {
        let status = match result {
            Ok(()) => CommandStatus::Ok,
            Err((status, detail)) => {
                warn!("attach refused: {status:?} ({detail:#x})");
                status
            }
        };
        device.attach_status.store(status as u32, Ordering::Relaxed);
    }
    refresh();
}

fn attach(page: Pa) -> Result<(), Refusal> {
    let device = DEVICE.get().ok_or((CommandStatus::NotAttached, 0))?;
    let _one = device.commands.lock();
    let old = Pa(device.shared.load(Ordering::Acquire));
    // Page 0 stands for "none attached" below, and is never root's to give.
    if page == Pa(0) {
        return Err((CommandStatus::BadArgument, 0));
    }
    if old != page {
        let zones = zone::count();
        if zones > 0 {
            return Err((CommandStatus::ZonesExist, zones as u64));
        }
        if !page.is_aligned(BLOCK_SIZE) {
            return Err((CommandStatus::Misaligned, page.0));
        }
        blocks::take(&[page])?;
        if stage1::map_shared(page).is_err() {
            blocks::give_back(page);
            return Err((CommandStatus::OutOfMemory, 1));
        }
        if old != Pa(0) {
            release_page(old);
        }
        device.shared.store(page.0, Ordering::Release);
    }
    let (magic, version) = (
        read_word(page, shared::HEADER),
        read_word(page, shared::HEADER + 8),
    );
    if magic != abi::MAGIC || version as u32 != abi::ABI_VERSION {
        if zone::count() == 0 {
            device.shared.store(0, Ordering::Release);
            release_page(page);
        }
        return Err((CommandStatus::VersionMismatch, version & 0xffff_ffff));
    }
    let epoch = device.epoch.fetch_add(1, Ordering::Relaxed) + 1;
    info!("daemon attached, shared page {page}, epoch {epoch}");
    Ok(())
}

fn detach() -> Result<(), Refusal> {
    let device = DEVICE.get().ok_or((CommandStatus::NotAttached, 0))?;
    let _one = device.commands.lock();
    let zones = zone::count();
    if zones > 0 {
        return Err((CommandStatus::ZonesExist, zones as u64));
    }
    match device.shared.swap(0, Ordering::AcqRel) {
        0 => Err((CommandStatus::NotAttached, 0)),
        page => {
            release_page(Pa(page));
            info!("daemon detached");
            Ok(())
        }
    }
}

fn release_page(page: Pa) {
    if stage1::unmap_shared(page).is_err() {
        warn!("shared page {page} cannot be unmapped");
    }
    blocks::give_back(page);
}

/// The attached page's window for a zone.
pub fn window(number: u8) -> Option<&'static ZoneWindow> {
    let page = DEVICE.get()?.shared.load(Ordering::Acquire);
    let offset = shared::zone_window(number)?;
    if page == 0 {
        return None;
    }
    // SAFETY: the page is mapped from attach to detach, and detach is refused while zones exist; every field of the
    // window is an atomic, for which root's concurrent writes are defined.
    Some(unsafe { &*((page as usize + offset) as *const ZoneWindow) })
}

/// The aligned 8 bytes at `offset` of the shared page.
fn read_word(page: Pa, offset: usize) -> u64 {
    // SAFETY: callers pass an attached, mapped page and an aligned offset inside it.
    unsafe { ((page.0 as usize + (offset & (shared::SIZE - 8))) as *const u64).read_volatile() }
}

fn write_word(page: Pa, offset: usize, value: u64) {
    // SAFETY: as for `read_word`.
    unsafe { ((page.0 as usize + (offset & (shared::SIZE - 8))) as *mut u64).write_volatile(value) }
}

/// Copies a struct out of the shared page, each word once.
fn copy_in<T: FromZeros + FromBytes + IntoBytes>(page: Pa, offset: usize) -> T {
    let mut value = T::new_zeroed();
    for (index, chunk) in value.as_mut_bytes().chunks_mut(8).enumerate() {
        let word = read_word(page, offset + index * 8).to_le_bytes();
        for (to, from) in chunk.iter_mut().zip(word) {
            *to = from;
        }
    }
    value
}

/// Copies a struct into the shared page.
fn copy_out<T: IntoBytes + Immutable>(page: Pa, offset: usize, value: &T) {
    for (index, chunk) in value.as_bytes().chunks(8).enumerate() {
        let mut word = [0; 8];
        for (to, from) in word.iter_mut().zip(chunk) {
            *to = *from;
        }
        write_word(page, offset + index * 8, u64::from_le_bytes(word));
    }
}

fn run_command() {
    let Some(device) = DEVICE.get() else { return };
    stats::count(CpuEvent::Commands);
    let _one = device.commands.lock();
    let page = Pa(device.shared.load(Ordering::Acquire));
    if page == Pa(0) {
        return;
    }
    let mut header: Header = copy_in(page, shared::COMMAND);
    let result = match Op::try_from(header.op) {
        Ok(op) => exec::execute(op, &mut header, page),
        Err(op) => Err((CommandStatus::UnknownOp, u64::from(op))),
    };
    (header.status, header.detail) = match result {
        Ok(()) => (CommandStatus::Ok as u32, 0),
        Err((status, detail)) => {
            log::debug!(
                "command {:?} refused: {status:?} ({detail:#x})",
                Op::try_from(header.op)
            );
            (status as u32, detail)
        }
    };
    copy_out(page, shared::COMMAND, &header);
    refresh();
}

/// Brings the information page up to date.
pub fn refresh() {
    let Some(device) = DEVICE.get() else { return };
    let page = device.info.lock();
    let (pages_total, pages_used) = frames::usage();
    let (heap_total, heap_used) = heap::usage();
    let mut version = [0; 16];
    for (to, from) in version.iter_mut().zip(env!("CARGO_PKG_VERSION").bytes()) {
        *to = from;
    }
    let mut info = InfoPage {
        magic: abi::MAGIC,
        abi_version: abi::ABI_VERSION,
        shared_size: shared::SIZE as u32,
        version,
        attach_epoch: device.epoch.load(Ordering::Relaxed),
        attach_status: device.attach_status.load(Ordering::Relaxed),
        cpu_count: cpu::all().len() as u32,
        zone_count: MAX_ZONES as u32,
        pages_total: pages_total as u32,
        pages_used: pages_used as u32,
        heap_total: heap_total as u32,
        heap_used: heap_used as u32,
        event_intid: device.intid,
        event_interrupts: device.bells.load(Ordering::Relaxed),
        counter_frequency: sysreg::read!("cntfrq_el0") as u32,
        log_level: log::max_level() as u32,
        shared_pa: device.shared.load(Ordering::Relaxed),
        trace_records: stats::records(),
        trace_mask: stats::mask(),
        reserved: [0; 32],
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
        *slot = zone::summary(number as u8);
    }
    for (index, chunk) in info.as_bytes().chunks(4).enumerate() {
        let mut word = [0; 4];
        for (to, from) in word.iter_mut().zip(chunk) {
            *to = *from;
        }
        let value = u32::from_le_bytes(word);
        if page.get32(index * 4) != value {
            page.set32(index * 4, value);
        }
    }
}

const _: () = assert!(size_of::<command::DeviceState>() <= shared::PAYLOAD_SIZE);
