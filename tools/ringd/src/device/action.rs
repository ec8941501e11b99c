//! [`Action`]: what the daemon does for a request about devices.

use super::Change;
use super::view::Observed;

/// Makes a reply of a kind's requests.
pub type Report<T, R> = Box<dyn Fn(&T) -> R>;

/// What the daemon does for a request whose reply is an `R`.
pub enum Action<R> {
    /// Reports devices.
    List(Report<[Observed], R>),
    /// Changes a device of a zone.
    Change {
        /// The zone.
        zone: String,
        /// The change.
        change: Change,
        /// Makes the reply of the changed device, if the reply is a report.
        report: Option<Report<Observed, R>>,
    },
}

impl<R: 'static> Action<R> {
    /// Returns the same action with its reply wrapped.
    #[must_use]
    pub fn map<S>(self, wrap: fn(R) -> S) -> Action<S>
    where
        S: 'static,
    {
        match self {
            Self::List(list) => Action::List(Box::new(move |devices| wrap(list(devices)))),
            Self::Change { zone, change, report } => Action::Change {
                zone,
                change,
                report: report
                    .map(|report| -> Report<Observed, S> { Box::new(move |device| wrap(report(device))) }),
            },
        }
    }
}
