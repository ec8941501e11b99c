//! Exit statuses of `ringctl`. They are part of its interface: scripts and systemd tell causes apart by them.

use crate::control::client::ClientError;
use crate::zone::Ending;

/// Anything else that failed.
pub const FAILED: u8 = 1;
/// The command line makes no sense; clap's.
pub const USAGE: u8 = 2;
/// The daemon refused, or a zone file describes no possible zone.
pub const REFUSED: u8 = 3;
/// A guest did not end in time.
pub const STILL_RUNS: u8 = 4;
/// There is no zone of this name.
pub const NOT_FOUND: u8 = 5;
/// The guest crashed, or the daemon could not continue it.
pub const CRASHED: u8 = 6;
/// No daemon answers.
pub const NO_DAEMON: u8 = 7;

/// The error that a description is of no use.
#[derive(Debug, thiserror::Error)]
#[error("{0:#}")]
pub struct Invalid(pub anyhow::Error);

/// The error that something does not exist.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Missing(pub String);

/// The error that a zone ended, and not cleanly.
#[derive(Debug, thiserror::Error)]
#[error("zone {name} {ending}")]
pub struct Unclean {
    /// The zone.
    pub name: String,
    /// How it ended.
    pub ending: Ending,
}

/// Returns the exit status for an error.
pub fn of(error: &anyhow::Error) -> u8 {
    if error.is::<Invalid>() {
        return REFUSED;
    }
    if error.is::<Missing>() {
        return NOT_FOUND;
    }
    if let Some(Unclean { ending, .. }) = error.downcast_ref() {
        return match ending {
            Ending::Crashed(_) | Ending::Failed(_) => CRASHED,
            _ => FAILED,
        };
    }
    match error.downcast_ref() {
        Some(ClientError::Refused(_)) => REFUSED,
        Some(ClientError::NoSuchZone(_)) => NOT_FOUND,
        Some(
            ClientError::NotRunning(_)
            | ClientError::Starting { .. }
            | ClientError::Dying(_)
            | ClientError::Stopped(_)
            | ClientError::Between { .. }
            | ClientError::Connect { .. }
            | ClientError::Lost(_),
        ) => NO_DAEMON,
        Some(ClientError::Forgotten(_) | ClientError::Confused(_)) | None => FAILED,
    }
}

#[cfg(test)]
mod tests {
    use anyhow::{Context as _, anyhow};

    use super::{CRASHED, FAILED, Invalid, Missing, NO_DAEMON, NOT_FOUND, REFUSED, Unclean, of};
    use crate::control::client::ClientError;
    use crate::zone::Ending;

    #[test]
    fn causes_have_statuses_of_their_own() {
        let ended = |ending| {
            anyhow::Error::new(Unclean {
                name: "a".into(),
                ending,
            })
        };
        for (error, status) in [
            (anyhow!("disk full"), FAILED),
            (Invalid(anyhow!("no")).into(), REFUSED),
            (ClientError::Refused("no".into()).into(), REFUSED),
            (Missing("no".into()).into(), NOT_FOUND),
            (ClientError::NoSuchZone("no".into()).into(), NOT_FOUND),
            (ended(Ending::Stopped), FAILED),
            (ended(Ending::Crashed("x".into())), CRASHED),
            (ClientError::NotRunning("/run/sock".into()).into(), NO_DAEMON),
            (ClientError::Confused("x".into()).into(), FAILED),
        ] {
            assert_eq!(of(&error), status, "{error}");
            assert_eq!(of(&Err::<(), _>(error).context("around it").unwrap_err()), status);
        }
    }
}
