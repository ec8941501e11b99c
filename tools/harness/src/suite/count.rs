//! Numbers of tests, as `cargo test` prints them.

/// Numbers of tests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Passed.
    pub passed: u64,
    /// Failed.
    pub failed: u64,
    /// Not run.
    pub ignored: u64,
}

impl Count {
    /// Reads `test result: ok. 3 passed; 0 failed; 1 ignored; ...`.
    pub fn parse(line: &str) -> Option<Self> {
        let (_, rest) = line.strip_prefix("test result: ")?.split_once(". ")?;
        let number = |word: &str| {
            let part = rest.split(';').find_map(|p| p.trim().strip_suffix(word))?;
            part.trim().parse().ok()
        };
        Some(Self {
            passed: number("passed")?,
            failed: number("failed")?,
            ignored: number("ignored")?,
        })
    }

    /// Returns the sums of both.
    pub fn plus(self, other: Self) -> Self {
        Self {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
            ignored: self.ignored + other.ignored,
        }
    }

    /// Takes a stage's status into account: without results it is one test, and so is a failure without a
    /// failed test.
    pub fn with_status(self, success: bool) -> Self {
        match (success, self) {
            (
                true,
                Self {
                    passed: 0, failed: 0, ..
                },
            ) => Self { passed: 1, ..self },
            (false, Self { failed: 0, .. }) => Self { failed: 1, ..self },
            _ => self,
        }
    }
}

/// Reads the name and the seconds of wall and CPU time, rounded up, from the line of a system test that
/// passed (`system::report`).
pub fn duration(line: &str) -> Option<(&str, u64, u64)> {
    let (name, took) = line.strip_prefix("test ")?.split_once(" ... ok (")?;
    let (wall, cpu) = took.strip_suffix(" s of CPU)")?.split_once(" s, ")?;
    let up = |seconds: &str| Some(seconds.split_once('.')?.0.parse::<u64>().ok()? + 1);
    Some((name, up(wall)?, up(cpu)?))
}

#[cfg(test)]
mod tests {
    use super::{Count, duration};

    #[test]
    fn reads_cargos_result_lines() {
        let line = "test result: FAILED. 15 passed; 2 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        assert_eq!(
            Count::parse(line),
            Some(Count {
                passed: 15,
                failed: 2,
                ignored: 1
            })
        );
        assert_eq!(Count::parse("test result: unknown"), None);
        assert_eq!(Count::parse("test a ... ok"), None);
    }

    #[test]
    fn durations_are_read_from_result_lines() {
        assert_eq!(
            duration("test a57::x ... ok (12.3 s, 20.0 s of CPU)"),
            Some(("a57::x", 13, 21))
        );
        assert_eq!(duration("test a57::x ... FAILED (status 1)"), None);
        assert_eq!(duration("test tests::y ... ok"), None);
    }

    #[test]
    fn a_status_is_never_lost() {
        assert_eq!(Count::default().with_status(true).passed, 1);
        assert_eq!(Count::default().with_status(false).failed, 1);
        let some = Count {
            passed: 3,
            failed: 0,
            ignored: 0,
        };
        assert_eq!(some.with_status(false).failed, 1);
        assert_eq!(some.with_status(true), some);
    }
}
