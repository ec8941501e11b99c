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
        /// Times that a zone had more events than its share of a round.
        full_rounds,
        /// Times that a zone's events were left alone for some milliseconds, because it had too many.
        pauses as "event_pauses",
        /// Events taken.
        entries,
        /// Those that were notifications of queues.
        notifications,
    }
}
