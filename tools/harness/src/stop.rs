//! Why a scripted machine stopped, and the exit status that stands for it.

use std::fmt;
use std::time::Duration;

/// Why a machine stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// The script ended with this status and the machine powered off.
    Script(u8),
    /// The script ended with this status, but the machine did not power off.
    NoPowerOff(u8),
    /// Root's kernel or the hypervisor panicked: the line that said so.
    Panic(String),
    /// The machine restarted though the script had not asked for it.
    Restarted,
    /// The time was up, and how much of it there was.
    Timeout(Duration),
    /// QEMU ended before the script did.
    Ended(String),
}

impl Stop {
    /// Returns the status for the shell: the script's own, 124 as `timeout` has it, 121 for a panic, else
    /// 125.
    pub fn code(&self) -> u8 {
        match self {
            Self::Script(status) => *status,
            Self::NoPowerOff(0) | Self::Ended(_) => 125,
            Self::NoPowerOff(status) => *status,
            Self::Panic(_) | Self::Restarted => 121,
            Self::Timeout(_) => 124,
        }
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Script(status) => write!(f, "the script ended with status {status}"),
            Self::NoPowerOff(status) => {
                write!(
                    f,
                    "the script ended with status {status}, but the machine did not power off"
                )
            }
            Self::Panic(line) => write!(f, "panic: {line}"),
            Self::Restarted => f.write_str("root restarted though the script had not asked for it"),
            Self::Timeout(limit) => write!(f, "timeout: not finished after {} s", limit.as_secs()),
            Self::Ended(why) => write!(f, "QEMU ended before the script did: {why}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Stop;

    #[test]
    fn no_failure_has_status_zero() {
        for stop in [
            Stop::Script(3),
            Stop::NoPowerOff(0),
            Stop::NoPowerOff(7),
            Stop::Panic(String::new()),
            Stop::Restarted,
            Stop::Timeout(Duration::from_secs(1)),
            Stop::Ended(String::new()),
        ] {
            assert_ne!(stop.code(), 0, "{stop}");
        }
        assert_eq!(Stop::Script(0).code(), 0);
        assert_eq!(Stop::Timeout(Duration::from_secs(1)).code(), 124);
    }
}
