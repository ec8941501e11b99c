//! Counting and tracing on this CPU, and the counters of the zones' devices.
//!
//! Where tracing is off, its cost is the load of [`mask`] and a branch; the rest is out of line. A device's
//! counters are written by the holder of the slot's lock.

use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

use ringvisor::abi::counters::{
    self, CPU_WORDS, CpuCounters, CpuEvent, DEVICE_WORDS, DeviceEvent, Exit, word,
};
use ringvisor::abi::trace::{self, Kind, RECORD_SIZE, Record};
use ringvisor::abi::{MAX_CPUS, MAX_SLOTS, MAX_ZONES};
use ringvisor::addr::{PAGE_SIZE, Pa};

use super::arch::sysreg;
use super::cpu;
use super::cpu::counters::Words;
use super::mm::frames;

const PAGE: usize = PAGE_SIZE as usize;
const CPUS_PER_PAGE: usize = PAGE / size_of::<CpuCounters>();
const CPU_PAGES: usize = MAX_CPUS / CPUS_PER_PAGE;
/// Words of the devices of a zone.
const ZONE_WORDS: usize = MAX_SLOTS * DEVICE_WORDS;
const DEVICE_PAGES: usize = MAX_ZONES * ZONE_WORDS * 8 / PAGE;

/// What is traced: bits of `ringvisor::abi::trace`.
static MASK: AtomicU32 = AtomicU32::new(0);
/// Capacity of each CPU's trace buffer, in records.
static RECORDS: AtomicU32 = AtomicU32::new(0);
/// The pages in which root reads the counters of all zones' devices; null before [`init`].
static DEVICES: AtomicPtr<AtomicU64> = AtomicPtr::new(ptr::null_mut());

/// Returns the generic counter in ticks, as root reads it.
pub fn now() -> u64 {
    sysreg::read!("cntpct_el0")
}

/// Counts an event on this CPU.
#[inline]
pub fn count(event: CpuEvent) {
    cpu::this().counters.words.add(word::EVENTS + event as usize, 1);
}

/// Marks the entry to EL2 from a lower level.
#[inline]
pub fn enter() {
    cpu::this().counters.set_entered(now());
}

/// Counts an exit that is about to return to the lower level, and its duration if `timed`: not if the CPU
/// waited at EL2 on purpose.
#[inline]
pub fn leave(exit: Exit, timed: bool) {
    let counters = cpu::this().counters;
    let words = &counters.words;
    words.add(word::EXITS + exit as usize, 1);
    if !timed {
        return;
    }
    let time = now().wrapping_sub(counters.entered());
    words.add(word::TICKS + exit as usize, time);
    if time > words.get(word::LONGEST) {
        words.set(word::LONGEST, time);
        words.set(word::LONGEST_EXIT, exit as u64);
    }
    if mask() & trace::EXITS != 0 {
        record_entered(
            Kind::Exit,
            cpu::this().owner(),
            exit as u8,
            0,
            u32::try_from(time).unwrap_or(u32::MAX),
        );
    }
}

/// Returns what is traced: bits of `ringvisor::abi::trace`.
#[inline]
pub fn mask() -> u32 {
    MASK.load(Ordering::Relaxed)
}

/// Sets what is traced from now on.
pub fn set_mask(mask: u32) {
    MASK.store(mask, Ordering::Relaxed);
}

/// Returns the capacity of each CPU's trace buffer, in records.
pub fn records() -> u32 {
    RECORDS.load(Ordering::Relaxed)
}

/// Traces a step of a request, stamped with the present time.
#[inline]
pub fn record(kind: Kind, zone: u8, slot: u8, queue: u8, value: u32) {
    if mask() & trace::REQUESTS != 0 {
        write(now(), kind, zone, slot, queue, value);
    }
}

/// Traces a step of a request that is the trap itself, stamped with the entry to EL2.
#[inline]
pub fn record_trap(kind: Kind, zone: u8, slot: u8, queue: u8) {
    if mask() & trace::REQUESTS != 0 {
        record_entered(kind, zone, slot, queue, 0);
    }
}

#[cold]
fn record_entered(kind: Kind, zone: u8, slot: u8, queue: u8, value: u32) {
    write(cpu::this().counters.entered(), kind, zone, slot, queue, value);
}

#[cold]
#[inline(never)]
fn write(stamp: u64, kind: Kind, zone: u8, slot: u8, queue: u8, value: u32) {
    let record = Record {
        stamp,
        kind,
        zone,
        slot,
        queue,
        value,
    };
    // SAFETY: `init` gave every CPU a ring of this many records.
    unsafe { cpu::this().counters.trace(u64::from(records()), &record) };
}

/// The counters of a zone's devices; a slot's are written under that slot's lock.
pub struct Devices(Words<ZONE_WORDS>);

impl Devices {
    /// Returns counters at zero.
    pub const fn new() -> Self {
        Self(Words::new())
    }

    /// Shows the counters to root as those of zone `number`, from zero.
    pub fn show(&self, number: u8) {
        let number = usize::from(number);
        if let Some(first) = NonNull::new(DEVICES.load(Ordering::Relaxed)).filter(|_| number < MAX_ZONES) {
            // SAFETY: `init` allocated the words of MAX_ZONES zones, which are never freed.
            unsafe { self.0.show_at(first.add(number * ZONE_WORDS)) };
        }
        (0..MAX_SLOTS).for_each(|slot| self.restart(slot));
    }

    /// Counts an event of a device. The caller holds the slot's lock.
    pub fn count(&self, slot: usize, event: DeviceEvent) {
        self.0.add(slot * DEVICE_WORDS + event as usize, 1);
    }

    /// Sets the counters of a slot to zero, for another device.
    pub fn restart(&self, slot: usize) {
        for index in 0..DEVICE_WORDS {
            self.0.set(slot * DEVICE_WORDS + index, 0);
        }
    }
}

/// Allocates the frames that root sees and calls `page` with each: offset in BAR 0 and address. Called once,
/// before root starts. A CPU whose trace buffer finds no memory is without one, with a warning.
///
/// # Errors
/// There is no frame for the counters.
pub fn init(mut page: impl FnMut(usize, Pa)) -> Result<(), &'static str> {
    let frame = |pages: usize| -> Option<NonNull<AtomicU64>> {
        // Never freed: they stay mapped into root.
        frames::REGISTERS.alloc(pages).map(NonNull::cast)
    };
    let pa = |frame: NonNull<AtomicU64>| frame.as_ptr() as u64;
    let cpus = cpu::all();
    for (index, group) in cpus.chunks(CPUS_PER_PAGE).enumerate().take(CPU_PAGES) {
        let first = frame(1).ok_or("no register frame for the counters")?;
        for (place, cpu) in group.iter().enumerate() {
            // SAFETY: the frame has room for CPUS_PER_PAGE times CPU_WORDS, and is never freed.
            unsafe { cpu.counters.words.show_at(first.add(place * CPU_WORDS)) };
        }
        page(counters::CPU_OFFSET + index * PAGE, Pa(pa(first)));
    }
    let first = frame(DEVICE_PAGES).ok_or("no register frames for the devices' counters")?;
    DEVICES.store(first.as_ptr(), Ordering::Relaxed);
    for offset in (0..DEVICE_PAGES * PAGE).step_by(PAGE) {
        page(counters::DEVICE_OFFSET + offset, Pa(pa(first) + offset as u64));
    }
    let pages = trace::pages_per_cpu(cpus.len());
    RECORDS.store((pages * PAGE / RECORD_SIZE) as u32, Ordering::Relaxed);
    for (index, cpu) in cpus.iter().enumerate() {
        let Some(ring) = frame(pages) else {
            log::warn!("cpu{}: no memory for its trace buffer", cpu.index);
            continue;
        };
        // SAFETY: the frames hold RECORDS records and are never freed.
        unsafe { cpu.counters.set_ring(ring) };
        for number in 0..pages {
            let at = trace::OFFSET + (index * pages + number) * PAGE;
            page(at, Pa(pa(ring) + (number * PAGE) as u64));
        }
    }
    Ok(())
}
