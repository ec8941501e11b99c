//! [`Options`]: EL2's own command line, `/chosen/bootargs` of the firmware's device tree.

use alloc::string::{String, ToString};

use thiserror::Error;

/// EL2's log level; numbered as in the ABI's `LogLevel` command.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
#[repr(u8)]
pub enum LogLevel {
    /// Errors that stop a zone or a CPU.
    Error = 1,
    /// Errors that EL2 recovers from.
    Warn = 2,
    /// Zones created, started and stopped.
    #[default]
    Info = 3,
    /// Commands, PSCI calls.
    Debug = 4,
    /// Single exits.
    Trace = 5,
}

impl LogLevel {
    /// Parses a name or number.
    fn parse(value: &str) -> Option<Self> {
        Some(match value {
            "error" | "1" => Self::Error,
            "warn" | "2" => Self::Warn,
            "info" | "3" => Self::Info,
            "debug" | "4" => Self::Debug,
            "trace" | "5" => Self::Trace,
            _ => return None,
        })
    }
}

/// How the machine ends after a panic at EL2.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum PanicAction {
    /// It is reset.
    #[default]
    Reset,
    /// All CPUs stop.
    Halt,
}

impl PanicAction {
    fn parse(value: &str) -> Option<Self> {
        match value {
            "reset" => Some(Self::Reset),
            "halt" => Some(Self::Halt),
            _ => None,
        }
    }
}

/// Options of the command line.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Options {
    /// `loglevel=`
    pub log_level: LogLevel,
    /// `panic=`
    pub panic: PanicAction,
}

/// An invalid word of the command line.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum OptionError {
    /// No such key.
    #[error("unknown option {0:?}, expected loglevel=LEVEL or panic=reset|halt")]
    Unknown(String),
    /// The key's value is not valid.
    #[error("{key}={value}: expected {expected}")]
    Value {
        /// The key.
        key: &'static str,
        /// The value given.
        value: String,
        /// The values expected.
        expected: &'static str,
    },
}

impl Options {
    /// Parses words separated by blanks; the last value of a key counts.
    ///
    /// # Errors
    /// The first word that is not an option.
    pub fn parse(command_line: &str) -> Result<Self, OptionError> {
        let mut options = Self::default();
        for word in command_line.split_ascii_whitespace() {
            let wrong = |key, value: &str, expected| OptionError::Value {
                key,
                value: value.to_string(),
                expected,
            };
            match word.split_once('=') {
                Some(("loglevel", value)) => {
                    let expected = "error, warn, info, debug, trace or 1 to 5";
                    options.log_level =
                        LogLevel::parse(value).ok_or_else(|| wrong("loglevel", value, expected))?;
                }
                Some(("panic", value)) => {
                    options.panic =
                        PanicAction::parse(value).ok_or_else(|| wrong("panic", value, "reset or halt"))?;
                }
                _ => return Err(OptionError::Unknown(word.to_string())),
            }
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::{LogLevel, Options, PanicAction};

    #[test]
    fn levels() {
        assert_eq!(Options::parse("").unwrap().log_level, LogLevel::Info);
        assert_eq!(
            Options::parse(" loglevel=1  loglevel=trace ").unwrap().log_level,
            LogLevel::Trace
        );
        assert_eq!(Options::parse("").unwrap().panic, PanicAction::Reset);
        assert_eq!(
            Options::parse("panic=halt loglevel=2").unwrap().panic,
            PanicAction::Halt
        );
    }

    #[test]
    fn mistakes_are_named() {
        let message = |line| Options::parse(line).unwrap_err().to_string();
        assert_eq!(
            message("loglevel=loud"),
            "loglevel=loud: expected error, warn, info, debug, trace or 1 to 5"
        );
        assert_eq!(
            message("quiet"),
            "unknown option \"quiet\", expected loglevel=LEVEL or panic=reset|halt"
        );
        assert_eq!(message("panic=1"), "panic=1: expected reset or halt");
        assert_eq!(
            message("log=1"),
            "unknown option \"log=1\", expected loglevel=LEVEL or panic=reset|halt"
        );
    }
}
