//! Result lines and summary, in the form of `cargo test`.

use std::time::Instant;

use parking_lot::Mutex;

use crate::cpu::Took;

/// Collects results from all workers.
#[derive(Debug)]
pub struct Report {
    verbose: bool,
    started: Instant,
    results: Mutex<Results>,
}

#[derive(Debug, Default)]
struct Results {
    passed: usize,
    ignored: usize,
    /// Name, reason, output.
    failed: Vec<(String, String, String)>,
}

impl Report {
    /// Begins the report of `count` tests; `verbose` shows the output of passed ones, too.
    pub fn new(verbose: bool, count: usize) -> Self {
        println!("\nrunning {count} tests");
        Self {
            verbose,
            started: Instant::now(),
            results: Mutex::default(),
        }
    }

    /// Reports that a test passed.
    pub fn passed(&self, name: &str, took: Took, output: &str) {
        println!("test {name} ... ok ({took})");
        if self.verbose && !output.is_empty() {
            println!("{}", indented(output));
        }
        self.results.lock().passed += 1;
    }

    /// Reports that a test failed.
    pub fn failed(&self, name: &str, why: &str, output: &str) {
        println!("test {name} ... FAILED ({why})");
        let failure = (name.to_owned(), why.to_owned(), output.to_owned());
        self.results.lock().failed.push(failure);
    }

    /// Reports that a test was left out.
    pub fn ignored(&self, name: &str) {
        println!("test {name} ... ignored");
        self.results.lock().ignored += 1;
    }

    /// Prints what failed, and the summary. Returns 0 if nothing did.
    pub fn finish(self) -> u8 {
        let seconds = self.started.elapsed().as_secs_f64();
        let results = self.results.into_inner();
        if !results.failed.is_empty() {
            println!("\nfailures:");
            for (name, why, output) in &results.failed {
                println!("\n---- {name}: {why} ----\n{}", indented(output));
            }
            println!("\nfailures:");
            for (name, ..) in &results.failed {
                println!("    {name}");
            }
        }
        let verdict = if results.failed.is_empty() { "ok" } else { "FAILED" };
        println!(
            "\ntest result: {verdict}. {} passed; {} failed; {} ignored; 0 measured; 0 filtered out; finished in \
             {seconds:.2}s",
            results.passed,
            results.failed.len(),
            results.ignored
        );
        u8::from(!results.failed.is_empty())
    }
}

fn indented(text: &str) -> String {
    text.lines()
        .map(|line| format!("    {line}\n"))
        .collect::<String>()
        .trim_end()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::{Report, Took};

    #[test]
    fn one_failure_makes_the_status() {
        let report = Report::new(false, 2);
        report.passed("a", Took::default(), "");
        assert_eq!(Report::new(false, 0).finish(), 0);
        report.failed("b", "status 1", "output");
        assert_eq!(report.finish(), 1);
    }
}
