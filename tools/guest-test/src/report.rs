//! Results in TAP (Test Anything Protocol): [`Suite`] counts, [`Failure`] is a reason, [`check!`] returns
//! one.

use core::fmt::{self, Write};

use arrayvec::ArrayString;

use crate::console::println;

/// Why a test failed, truncated to the buffer.
pub struct Failure(ArrayString<240>);

impl Failure {
    /// Returns a failure with this message.
    pub fn new(message: fmt::Arguments<'_>) -> Self {
        let mut text = Truncating(ArrayString::new());
        let _ = text.write_fmt(message);
        Self(text.0)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

struct Truncating(ArrayString<240>);

impl Write for Truncating {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            if self.0.try_push(character).is_err() {
                break;
            }
        }
        Ok(())
    }
}

/// What a test returns.
pub type TestResult = Result<(), Failure>;

/// Returns a [`Failure`] from the test unless the condition holds.
#[macro_export]
macro_rules! check {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err($crate::report::Failure::new(format_args!($($message)+)));
        }
    };
}

/// Returns a [`Failure`] unless both are equal; prints both.
#[macro_export]
macro_rules! check_eq {
    ($left:expr, $right:expr, $($message:tt)+) => {{
        let (left, right) = ($left, $right);
        if left != right {
            return Err($crate::report::Failure::new(format_args!(
                "{}: is {:#x?}, expected {:#x?}", format_args!($($message)+), left, right
            )));
        }
    }};
}

/// The tests run so far.
#[derive(Default)]
pub struct Suite {
    group: &'static str,
    run: u32,
    failed: u32,
}

impl Suite {
    /// Names the group of the tests that follow.
    pub fn group(&mut self, name: &'static str) {
        self.group = name;
    }

    /// Runs one test and prints its line.
    pub fn test(&mut self, name: &str, test: impl FnOnce() -> TestResult) {
        self.run += 1;
        match test() {
            Ok(()) => println!("ok {} - {}: {name}", self.run, self.group),
            Err(failure) => {
                self.failed += 1;
                println!("not ok {} - {}: {name}", self.run, self.group);
                println!("# {failure}");
            }
        }
    }

    /// Counts a test that does not apply to this machine.
    pub fn skip(&mut self, name: &str, reason: &str) {
        self.run += 1;
        println!("ok {} - {}: {name} # SKIP {reason}", self.run, self.group);
    }

    /// Calls [`Self::test`], or [`Self::skip`] on plain QEMU, which does not behave this way.
    pub fn test_unless(&mut self, reference: bool, name: &str, test: impl FnOnce() -> TestResult) {
        if reference {
            self.skip(name, "not done by the reference machine");
        } else {
            self.test(name, test);
        }
    }

    /// Prints the plan and the result.
    pub fn finish(self) {
        println!("1..{}", self.run);
        if self.failed == 0 && self.run != 0 {
            println!("guest-test: PASS");
        } else {
            println!("guest-test: FAIL ({} of {})", self.failed, self.run);
        }
    }
}
