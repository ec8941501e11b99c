//! Benchmarks that count instructions: by valgrind's callgrind, as the difference of a long and a short run
//! of the benchmark's very program. Such numbers do not depend on what else the machine does.

use std::process::Command;

/// Rounds of the short run and of the long one.
const ROUNDS: [u64; 2] = [100, 1100];

/// A benchmark's `main`: prints instructions for each request of each case, which is a kind of request and
/// how many of them are a round; `size` is a request's. `run` is given kind, requests and rounds, in the
/// programs that are counted and for `instructions run KIND DEPTH ROUNDS`, for `perf stat` too. True where
/// the cases were reported.
pub fn count(cases: &[(&str, u16)], size: &str, run: impl FnOnce(&str, u16, u64)) -> bool {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if let ["run", kind, depth, rounds] = words[..] {
        let (Ok(depth), Ok(rounds)) = (depth.parse(), rounds.parse()) else {
            panic!("expected numbers, not {depth} and {rounds}");
        };
        run(kind, depth, rounds);
        return false;
    }
    // Whatever cargo and criterion say beside it; as a test there is nothing to be done.
    if words.contains(&"--test") {
        return false;
    }
    for &(kind, depth) in cases {
        let [few, many] = ROUNDS.map(|rounds| counted(kind, depth, rounds));
        match (few, many) {
            (Ok(few), Ok(many)) => {
                let each = (many - few) / (ROUNDS[1] - ROUNDS[0]) / u64::from(depth);
                println!("{kind} {size} x {depth}: {each} instructions");
            }
            (Err(error), _) | (_, Err(error)) => {
                println!("{kind} {size} x {depth}: not counted: {error}");
                println!("valgrind counts: apt-get install valgrind");
            }
        }
    }
    true
}

/// Instructions of a whole run.
fn counted(kind: &str, depth: u16, rounds: u64) -> Result<u64, String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(program)
        .args(["run", kind, &depth.to_string(), &rounds.to_string()])
        .output()
        .map_err(|error| format!("valgrind: {error}"))?;
    let text = String::from_utf8_lossy(&output.stderr);
    // "==123== Collected : 4567"
    let line = text.lines().find_map(|line| line.split_once("Collected : "));
    let number = line.and_then(|(_, number)| number.trim().parse().ok());
    number.ok_or_else(|| text.lines().last().unwrap_or("no output").to_owned())
}
