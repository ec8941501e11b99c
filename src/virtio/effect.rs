//! What calls of the transport lead to: [`Effect`], [`Event`], [`Rejected`].

/// What the daemon has to be told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// Look at this queue.
    Notify {
        /// Which.
        queue: u8,
    },
    /// DRIVER_OK was set: begin with the queues that are ready.
    Activated,
    /// Let go of everything, then answer with this generation.
    Reset {
        /// Number of the reset.
        generation: u64,
    },
    /// A queue became ready after DRIVER_OK.
    QueueReady {
        /// Which.
        queue: u8,
    },
    /// Let go of this queue, then answer.
    QueueStop {
        /// Which.
        queue: u8,
    },
    /// The driver wrote this byte of configuration space.
    ConfigWrite {
        /// Where.
        offset: u16,
        /// What.
        value: u8,
    },
    /// DEVICE_NEEDS_RESET was set while the device was active: the driver is at fault.
    NeedsReset,
}

/// What follows from a call.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[must_use]
pub struct Effect {
    /// The store has not happened: execute it again.
    pub retry: bool,
    /// To be told to the daemon.
    pub event: Option<Event>,
    /// New level of the interrupt line, if it changed.
    pub line: Option<bool>,
}

impl Effect {
    pub(super) const NOTHING: Self = Self {
        retry: false,
        event: None,
        line: None,
    };

    pub(super) const fn event(event: Event) -> Self {
        Self {
            event: Some(event),
            ..Self::NOTHING
        }
    }

    pub(super) const fn retry(event: Option<Event>) -> Self {
        Self {
            retry: true,
            event,
            ..Self::NOTHING
        }
    }
}

/// A call of the daemon that does not fit the device's state.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Rejected {
    /// No reset or stop of that generation waits.
    #[error("nothing of that generation waits")]
    Stale,
    /// Outside configuration space.
    #[error("outside configuration space")]
    OutOfConfig,
}
