//! `cargo bench -p ringnet --bench instructions`: instructions for each packet, counted by valgrind's
//! callgrind as the difference of a long and a short run of this very program. The port transfers nothing:
//! the kernel's part, one system call for each packet, is in `batches.rs`.
//!
//! `instructions run KIND DEPTH ROUNDS` is one such run, for `perf stat` too.
#![allow(clippy::panic, reason = "what fails is not measured")]

mod support;

use std::process::Command;

use support::Card;

/// Rounds of the short run and of the long one.
const ROUNDS: [u64; 2] = [100, 1100];

/// Directions and how many packets come together.
const CASES: [(&str, u16); 4] = [("transmit", 1), ("transmit", 32), ("receive", 1), ("receive", 32)];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["run", kind, depth, rounds] => {
            let (Ok(depth), Ok(rounds)) = (depth.parse(), rounds.parse::<u64>()) else {
                panic!("expected numbers, not {depth} and {rounds}");
            };
            let mut card = Card::new(kind == "receive", depth);
            (0..rounds).for_each(|_| card.round());
        }
        // Whatever cargo and criterion say beside it; as a test there is nothing to be done.
        _ if words.contains(&"--test") => {}
        _ => report(),
    }
}

fn report() {
    for (kind, depth) in CASES {
        let [few, many] = ROUNDS.map(|rounds| count(kind, depth, rounds));
        match (few, many) {
            (Ok(few), Ok(many)) => {
                let each = (many - few) / (ROUNDS[1] - ROUNDS[0]) / u64::from(depth);
                println!("{kind} 1514 x {depth}: {each} instructions");
            }
            (Err(error), _) | (_, Err(error)) => {
                println!("{kind} 1514 x {depth}: not counted: {error}; apt-get install valgrind");
            }
        }
    }
}

/// Instructions of a whole run.
fn count(kind: &str, depth: u16, rounds: u64) -> Result<u64, String> {
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
