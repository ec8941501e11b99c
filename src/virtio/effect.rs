//! What a call of the transport causes: [`Effect`], [`Event`], [`Rejected`].

/// An event, for the daemon unless it says otherwise.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// The driver sent an available buffer notification (2.3).
    Notify {
        /// Queue index.
        queue: u8,
    },
    /// DRIVER_OK was set: queues that are ready may be processed.
    Activated,
    /// The driver resets the device: the daemon stops using guest memory, then answers with this generation.
    Reset {
        /// Number of the reset.
        generation: u64,
    },
    /// A queue became ready after DRIVER_OK.
    QueueReady {
        /// Queue index.
        queue: u8,
    },
    /// The driver stops this queue: the daemon stops using it, then answers.
    QueueStop {
        /// Queue index.
        queue: u8,
    },
    /// The driver wrote this byte of configuration space.
    ConfigWrite {
        /// Offset in configuration space.
        offset: u16,
        /// The byte written.
        value: u8,
    },
    /// The driver wrote this byte to a console's `emerg_wr`; not for the daemon.
    EmergencyWrite {
        /// The byte written.
        byte: u8,
    },
    /// DEVICE_NEEDS_RESET was set while the device was active, because of an error of the driver.
    NeedsReset,
}

/// What a call causes outside the registers.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[must_use]
pub struct Effect {
    /// The store has not completed: the guest executes it again.
    pub retry: bool,
    /// Event for the daemon.
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

/// Why a call by the daemon does not fit the device's state.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Rejected {
    /// No reset or queue stop of that generation is pending.
    #[error("no reset or stop of that generation is pending")]
    Stale,
    /// Outside configuration space.
    #[error("outside configuration space")]
    OutOfConfig,
}
