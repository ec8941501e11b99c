//! The events of a run: a hash by which two runs are compared, and text lines on request.

use std::fmt::{Arguments, Write};

/// See the module.
#[derive(Debug, Default)]
pub struct Trace {
    hash: Hash,
    line: String,
    print: bool,
    /// The number of events so far.
    pub events: u64,
}

#[derive(Debug)]
struct Hash(u64);

impl Default for Hash {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Trace {
    /// Returns an empty trace; `print` writes each event to standard error.
    pub fn new(print: bool) -> Self {
        Self {
            print,
            ..Self::default()
        }
    }

    /// Adds an event.
    pub fn event(&mut self, what: Arguments<'_>) {
        self.line.clear();
        // Writing to a `String` cannot fail.
        let _ = self.line.write_fmt(what);
        if self.print {
            eprintln!("{:6} {}", self.events, self.line);
        }
        self.events += 1;
        // FNV-1a.
        for byte in self.line.bytes().chain([b'\n']) {
            self.hash.0 = (self.hash.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    /// Returns the hash over all events so far.
    pub fn hash(&self) -> u64 {
        self.hash.0
    }
}
