//! [`RingCounters`]: what the reactor has taken off the zones' rings.

ringvirtio::counters! {
    /// What the reactor has taken off the zones' rings; written by its thread alone.
    RingCounters =>
    /// [`RingCounters`] at some moment.
    RingSnapshot {
        /// Rounds of the reactor.
        rounds,
        /// Interrupts of the control device taken.
        wakeups,
        /// Those after which no ring had an event.
        spurious_wakeups,
        /// Times that busy polling before going to sleep found something.
        polled,
        /// Times that it did not.
        polls_without_work as "polled_in_vain",
        /// Nanoseconds spent busy polling.
        polling_ns,
        /// Events taken.
        entries,
        /// Those that were notifications of queues.
        notifications,
    }
}
