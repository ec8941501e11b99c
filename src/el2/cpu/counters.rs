//! Counters ([`Words`]), and those of one CPU with its trace buffer (`ringvisor::abi::counters`,
//! `ringvisor::abi::trace`).
//!
//! Only the CPU itself writes them, so a counter is a plain load, addition and store without a lock, with a
//! second store to the page that root reads (non-cacheable at EL2: a store is buffered, and a load is never
//! needed).

use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use ringvisor::abi::counters::{CPU_WORDS, word};
use ringvisor::abi::trace::{RECORD_SIZE, Record};

use crate::el2::arch;

/// Words that have one writer at a time, and the copy that root reads.
pub struct Words<const N: usize> {
    own: [AtomicU64; N],
    /// The copy; null before [`Self::show_at`].
    shown: AtomicPtr<AtomicU64>,
}

impl<const N: usize> Words<N> {
    /// Returns words at zero, not shown to root.
    pub const fn new() -> Self {
        Self {
            own: [const { AtomicU64::new(0) }; N],
            shown: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// Returns the word at `index`.
    pub fn get(&self, index: usize) -> u64 {
        self.own.get(index).map_or(0, |word| word.load(Ordering::Relaxed))
    }

    /// Sets the word at `index`, and root's copy.
    #[inline]
    pub fn set(&self, index: usize, value: u64) {
        let Some(word) = self.own.get(index) else { return };
        word.store(value, Ordering::Relaxed);
        let shown = self.shown.load(Ordering::Relaxed);
        if !shown.is_null() {
            // SAFETY: `show_at` was given N words that are never freed; `index` is below that, as the lookup
            // above showed.
            unsafe { &*shown.add(index) }.store(value, Ordering::Relaxed);
        }
    }

    /// Adds to the word at `index`.
    #[inline]
    pub fn add(&self, index: usize, count: u64) {
        self.set(index, self.get(index).wrapping_add(count));
    }

    /// Shows the words to root at `page` from now on.
    ///
    /// # Safety
    /// `page` must have room for N words and never be freed.
    pub unsafe fn show_at(&self, page: NonNull<AtomicU64>) {
        self.shown.store(page.as_ptr(), Ordering::Relaxed);
    }
}

/// The counters of a CPU and its trace buffer.
pub struct Counters {
    /// As [`ringvisor::abi::counters::CpuCounters`].
    pub words: Words<CPU_WORDS>,
    /// The trace buffer, or null.
    ring: AtomicPtr<AtomicU64>,
    /// Generic counter at the last entry to EL2, in ticks.
    entered: AtomicU64,
}

impl Counters {
    /// Returns counters at zero, not shown to root.
    pub const fn new() -> Self {
        Self {
            words: Words::new(),
            ring: AtomicPtr::new(ptr::null_mut()),
            entered: AtomicU64::new(0),
        }
    }

    /// Sets all counters to zero, for another owner of the CPU. The trace buffer continues.
    pub fn restart(&self) {
        for index in (0..CPU_WORDS).filter(|index| *index != word::TRACE_HEAD) {
            self.words.set(index, 0);
        }
    }

    /// Sets when EL2 was entered, in ticks of the generic counter.
    #[inline]
    pub fn set_entered(&self, now: u64) {
        self.entered.store(now, Ordering::Relaxed);
    }

    /// Returns when EL2 was entered, in ticks of the generic counter.
    #[inline]
    pub fn entered(&self) -> u64 {
        self.entered.load(Ordering::Relaxed)
    }

    /// Sets the CPU's trace buffer.
    ///
    /// # Safety
    /// `ring` must have room for the `capacity` that [`Self::trace`] is called with, and never be freed.
    pub unsafe fn set_ring(&self, ring: NonNull<AtomicU64>) {
        self.ring.store(ring.as_ptr(), Ordering::Relaxed);
    }

    /// Appends to the trace buffer of `capacity` records. Does nothing if there is none.
    ///
    /// # Safety
    /// `capacity` must be the number of records in the ring given to [`Self::set_ring`].
    pub unsafe fn trace(&self, capacity: u64, record: &Record) {
        let ring = self.ring.load(Ordering::Relaxed);
        if ring.is_null() || capacity == 0 {
            return;
        }
        let head = self.words.get(word::TRACE_HEAD);
        // SAFETY: the ring has `capacity` records and is never freed.
        let (first, second) = unsafe {
            let place = ring.add((head % capacity) as usize * (RECORD_SIZE / 8));
            (&*place, &*place.add(1))
        };
        first.store(record.stamp, Ordering::Relaxed);
        second.store(record.word(), Ordering::Relaxed);
        // Root must see the record before the head that counts it.
        arch::dsb_ishst();
        self.words.set(word::TRACE_HEAD, head + 1);
    }
}
