//! Counters and trace buffers of the CPUs (`ringvisor::abi::counters`, `ringvisor::abi::trace`).
//!
//! Each CPU writes its own and no lock is taken: a counter is a plain load, addition and store, with a second store to
//! the page that root reads (non-cacheable at EL2, so a store of it is buffered and a load never needed). Of a device,
//! the writer is whoever holds the slot's lock.
//!
//! Recording, where it is off, is [`mask`]'s load and a branch; the rest is out of line.

use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

use ringvisor::abi::counters::{
    self, CPU_WORDS, CpuCounters, CpuEvent, DEVICE_WORDS, DeviceCounters, DeviceEvent, Exit, word,
};
use ringvisor::abi::trace::{self, Kind, RECORD_SIZE, Record};
use ringvisor::abi::{MAX_CPUS, MAX_SLOTS, MAX_ZONES};
use ringvisor::addr::{PAGE_SIZE, Pa};

use super::arch::{self, sysreg};
use super::cpu;
use super::mm::frames;

const PAGE: usize = PAGE_SIZE as usize;
const CPUS_PER_PAGE: usize = PAGE / size_of::<CpuCounters>();
const SLOTS_PER_PAGE: usize = PAGE / size_of::<DeviceCounters>();
const CPU_PAGES: usize = MAX_CPUS / CPUS_PER_PAGE;
const DEVICE_PAGES: usize = MAX_ZONES * MAX_SLOTS / SLOTS_PER_PAGE;

/// What is recorded; bits of `ringvisor::abi::trace`.
static MASK: AtomicU32 = AtomicU32::new(0);
/// Records of each CPU's ring.
static RECORDS: AtomicU32 = AtomicU32::new(0);
/// The pages that show devices' counters.
static DEVICES: [AtomicPtr<AtomicU64>; DEVICE_PAGES] =
    [const { AtomicPtr::new(ptr::null_mut()) }; DEVICE_PAGES];

/// A CPU's counters and the way to its trace buffer. All writes come from the CPU itself.
pub struct Counters {
    words: [AtomicU64; CPU_WORDS],
    /// The same for root to read; null before [`init`].
    shown: AtomicPtr<AtomicU64>,
    /// The ring, or null.
    ring: AtomicPtr<AtomicU64>,
    /// When the present stay at EL2 began.
    entered: AtomicU64,
}

impl Counters {
    /// All zero, shown nowhere.
    pub const fn new() -> Self {
        Self {
            words: [const { AtomicU64::new(0) }; CPU_WORDS],
            shown: AtomicPtr::new(ptr::null_mut()),
            ring: AtomicPtr::new(ptr::null_mut()),
            entered: AtomicU64::new(0),
        }
    }

    fn get(&self, index: usize) -> u64 {
        self.words
            .get(index)
            .map_or(0, |word| word.load(Ordering::Relaxed))
    }

    #[inline]
    fn set(&self, index: usize, value: u64) {
        let Some(word) = self.words.get(index) else { return };
        word.store(value, Ordering::Relaxed);
        let shown = self.shown.load(Ordering::Relaxed);
        if !shown.is_null() {
            // SAFETY: `init` set it to the CPU's part of a frame that is never freed, CPU_WORDS long; `index` is below
            // that, as the lookup above showed.
            unsafe { &*shown.add(index) }.store(value, Ordering::Relaxed);
        }
    }

    #[inline]
    fn add(&self, index: usize, count: u64) {
        self.set(index, self.get(index).wrapping_add(count));
    }

    /// The CPU has another owner: counts anew. The trace buffer goes on.
    pub fn restart(&self) {
        for index in (0..CPU_WORDS).filter(|index| *index != word::TRACE_HEAD) {
            self.set(index, 0);
        }
    }
}

/// The generic counter, as root reads it.
pub fn now() -> u64 {
    sysreg::read!("cntpct_el0")
}

/// Counts an event of this CPU.
#[inline]
pub fn count(event: CpuEvent) {
    cpu::this().counters.add(word::EVENTS + event as usize, 1);
}

/// A lower level was left for EL2.
#[inline]
pub fn enter() {
    cpu::this().counters.entered.store(now(), Ordering::Relaxed);
}

/// EL2 is about to be left. `timed` is false if the CPU waited here on purpose: then the stay has no length.
#[inline]
pub fn leave(exit: Exit, timed: bool) {
    let counters = cpu::this().counters;
    counters.add(word::EXITS + exit as usize, 1);
    if !timed {
        return;
    }
    let stay = now().wrapping_sub(counters.entered.load(Ordering::Relaxed));
    counters.add(word::TICKS + exit as usize, stay);
    if stay > counters.get(word::LONGEST) {
        counters.set(word::LONGEST, stay);
        counters.set(word::LONGEST_EXIT, exit as u64);
    }
    if mask() & trace::EXITS != 0 {
        record_entered(
            Kind::Exit,
            cpu::this().owner(),
            exit as u8,
            0,
            u32::try_from(stay).unwrap_or(u32::MAX),
        );
    }
}

/// What is recorded.
#[inline]
pub fn mask() -> u32 {
    MASK.load(Ordering::Relaxed)
}

/// Records from now on what the bits of `mask` say.
pub fn set_mask(mask: u32) {
    MASK.store(mask, Ordering::Relaxed);
}

/// Records of each CPU's ring.
pub fn records() -> u32 {
    RECORDS.load(Ordering::Relaxed)
}

/// Records a step of a request, as of now.
#[inline]
pub fn record(kind: Kind, zone: u8, slot: u8, queue: u8, value: u32) {
    if mask() & trace::REQUESTS != 0 {
        write(now(), kind, zone, slot, queue, value);
    }
}

/// Records a step of a request that is the trap itself: as of the moment when EL2 was entered.
#[inline]
pub fn record_trap(kind: Kind, zone: u8, slot: u8, queue: u8) {
    if mask() & trace::REQUESTS != 0 {
        record_entered(kind, zone, slot, queue, 0);
    }
}

#[cold]
fn record_entered(kind: Kind, zone: u8, slot: u8, queue: u8, value: u32) {
    let stamp = cpu::this().counters.entered.load(Ordering::Relaxed);
    write(stamp, kind, zone, slot, queue, value);
}

#[cold]
#[inline(never)]
fn write(stamp: u64, kind: Kind, zone: u8, slot: u8, queue: u8, value: u32) {
    let counters = cpu::this().counters;
    let (ring, capacity) = (counters.ring.load(Ordering::Relaxed), u64::from(records()));
    if ring.is_null() || capacity == 0 {
        return;
    }
    let head = counters.get(word::TRACE_HEAD);
    let record = Record {
        stamp,
        kind,
        zone,
        slot,
        queue,
        value,
    };
    // SAFETY: `init` made the ring of this many records, in frames that are never freed.
    let (first, second) = unsafe {
        let place = ring.add((head % capacity) as usize * (RECORD_SIZE / 8));
        (&*place, &*place.add(1))
    };
    first.store(record.stamp, Ordering::Relaxed);
    second.store(record.word(), Ordering::Relaxed);
    // The record before the head that counts it.
    arch::dsb_ishst();
    counters.set(word::TRACE_HEAD, head + 1);
}

/// The counters of a zone's devices, behind the locks of their slots.
pub struct Devices([[AtomicU64; DEVICE_WORDS]; MAX_SLOTS]);

impl Devices {
    /// All zero.
    pub const fn new() -> Self {
        Self([const { [const { AtomicU64::new(0) }; DEVICE_WORDS] }; MAX_SLOTS])
    }

    fn set(&self, zone: u8, slot: usize, index: usize, value: u64) {
        let word = self.0.get(slot).and_then(|words| words.get(index));
        let Some(word) = word else { return };
        word.store(value, Ordering::Relaxed);
        let place = usize::from(zone) * MAX_SLOTS + slot;
        let page = DEVICES
            .get(place / SLOTS_PER_PAGE)
            .map_or(ptr::null_mut(), |page| page.load(Ordering::Relaxed));
        if !page.is_null() {
            // SAFETY: `init` set it to a frame that is never freed; the index is within its SLOTS_PER_PAGE devices.
            unsafe { &*page.add(place % SLOTS_PER_PAGE * DEVICE_WORDS + index) }
                .store(value, Ordering::Relaxed);
        }
    }

    /// Counts. Under the slot's lock.
    pub fn count(&self, zone: u8, slot: usize, event: DeviceEvent) {
        let index = event as usize;
        let word = self.0.get(slot).and_then(|words| words.get(index));
        let value = word.map_or(0, |word| word.load(Ordering::Relaxed));
        self.set(zone, slot, index, value.wrapping_add(1));
    }

    /// Another device: counts anew.
    pub fn restart(&self, zone: u8, slot: usize) {
        for index in 0..DEVICE_WORDS {
            self.set(zone, slot, index, 0);
        }
    }

    /// A zone begins with this number.
    pub fn restart_all(&self, zone: u8) {
        for slot in 0..MAX_SLOTS {
            self.restart(zone, slot);
        }
    }
}

/// Makes the frames that root sees. Calls `page` with each: offset in BAR 0 and address. Once, before root starts.
///
/// A machine on which a ring finds no memory is without it and says so.
pub fn init(mut page: impl FnMut(usize, Pa)) -> Result<(), &'static str> {
    let frame = |pages: usize| -> Option<NonNull<AtomicU64>> {
        // Never freed: root has them mapped for good.
        frames::REGISTERS.alloc(pages).map(NonNull::cast)
    };
    let pa = |frame: NonNull<AtomicU64>| frame.as_ptr() as u64;
    let cpus = cpu::all();
    for (index, group) in cpus.chunks(CPUS_PER_PAGE).enumerate().take(CPU_PAGES) {
        let first = frame(1).ok_or("no register frame for the counters")?;
        for (place, cpu) in group.iter().enumerate() {
            // SAFETY: the frame has room for CPUS_PER_PAGE.
            let shown = unsafe { first.as_ptr().add(place * CPU_WORDS) };
            cpu.counters.shown.store(shown, Ordering::Relaxed);
        }
        page(counters::CPU_OFFSET + index * PAGE, Pa(pa(first)));
    }
    for (index, slot) in DEVICES.iter().enumerate() {
        let first = frame(1).ok_or("no register frame for the devices' counters")?;
        slot.store(first.as_ptr(), Ordering::Relaxed);
        page(counters::DEVICE_OFFSET + index * PAGE, Pa(pa(first)));
    }
    let pages = trace::pages_per_cpu(cpus.len());
    RECORDS.store((pages * PAGE / RECORD_SIZE) as u32, Ordering::Relaxed);
    for (index, cpu) in cpus.iter().enumerate() {
        let Some(ring) = frame(pages) else {
            log::warn!("cpu{}: no memory for its trace buffer", cpu.index);
            continue;
        };
        cpu.counters.ring.store(ring.as_ptr(), Ordering::Relaxed);
        for number in 0..pages {
            let at = trace::OFFSET + (index * pages + number) * PAGE;
            page(at, Pa(pa(ring) + (number * PAGE) as u64));
        }
    }
    Ok(())
}
