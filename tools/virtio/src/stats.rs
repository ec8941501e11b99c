//! Counters of a queue: written by its reactor's thread alone, read by any thread at any time, without locks.
//!
//! [`QueueStats`] counts what every virtqueue does, [`QueueSnapshot`] is a copy for display. A device
//! declares its own counters beside them with [`counters!`](crate::counters).

use std::sync::atomic::{AtomicU64, Ordering};

/// A counter with a single writer.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `count`. Only the queue's own thread calls it, so a load and a store do instead of an atomic
    /// addition.
    #[inline]
    pub fn add(&self, count: u64) {
        self.set(self.get().wrapping_add(count));
    }

    /// Replaces the value.
    #[inline]
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// Raises the value to at least `value`.
    #[inline]
    pub fn raise_to(&self, value: u64) {
        if value > self.get() {
            self.set(value);
        }
    }

    /// Returns the current value.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Declares a set of counters once: as a struct of [`Counter`]s and as one of their
/// copies, with `snapshot()` from the first to the second and `counters()` of the second by name (another one
/// than the field's after `as`). Fields after a semicolon are no counters: they have types of their own in
/// both, and a `snapshot()` between them.
#[macro_export]
macro_rules! counters {
    (
        $(#[$stats_doc:meta])* $stats:ident => $(#[$copy_doc:meta])* $copy:ident {
            $($(#[$doc:meta])* $name:ident $(as $shown:literal)?,)*
            $(; $($(#[$part_doc:meta])* $part:ident: $part_type:ty => $part_copy:ty,)*)?
        }
    ) => {
        $(#[$stats_doc])*
        #[derive(Debug, Default)]
        pub struct $stats {
            $($(#[$doc])* pub $name: $crate::stats::Counter,)*
            $($($(#[$part_doc])* pub $part: $part_type,)*)?
        }

        $(#[$copy_doc])*
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct $copy {
            $($(#[$doc])* pub $name: u64,)*
            $($($(#[$part_doc])* pub $part: $part_copy,)*)?
        }

        impl $stats {
            /// Returns a copy. While the queue works, its numbers may differ by what is being counted.
            pub fn snapshot(&self) -> $copy {
                $copy {
                    $($name: self.$name.get(),)*
                    $($($part: self.$part.snapshot(),)*)?
                }
            }
        }

        impl $copy {
            /// Returns the counters by name.
            pub fn counters(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$(($crate::counters!(@name $name $($shown)?), self.$name),)*].into_iter()
            }
        }
    };
    (@name $name:ident) => { stringify!($name) };
    (@name $name:ident $shown:literal) => { $shown };
}

counters! {
    /// What a queue has done since it was made, whatever its device.
    QueueStats =>
    /// [`QueueStats`] at some moment.
    QueueSnapshot {
        /// Times that requests were found in the available ring.
        batches,
        /// Requests in those batches.
        batched,
        /// Most requests popped in one round.
        max_batch,
        /// Most requests in flight at once.
        max_depth,
        /// Publications of the used index.
        publications,
        /// Used buffer notifications sent.
        interrupts,
        /// Times that the driver wanted none.
        interrupts_suppressed,
        /// Publications whose notification was left to a later one.
        interrupts_coalesced,
        /// Notifications that found nothing.
        spurious_notifications as "spurious_kicks",
        /// Requests run again after a restart of the daemon.
        restarted,
        /// Times that requests were left in the available ring because of a rate limit.
        throttled,
    }
}
