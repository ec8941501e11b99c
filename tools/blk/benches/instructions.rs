//! `cargo bench`: instructions for each request, counted by valgrind's callgrind as the difference of a long
//! and a short run of this very program; and the memory of a process with a disk at rest. What `requests.rs`
//! measures, in numbers that do not depend on what else the machine does.
//!
//! `instructions run KIND DEPTH ROUNDS` is one such run, for `perf stat` too.
#![allow(clippy::panic, reason = "what fails is not measured")]

mod support;

use std::process::Command;

use support::{Disk, Registers, Shape};

/// Rounds of the short run and of the long one.
const ROUNDS: [u64; 2] = [100, 1100];

/// Kinds of requests and depths.
const CASES: [(&str, u16); 8] = [
    ("read", 1),
    ("read", 32),
    ("read-neighbours", 32),
    ("write", 1),
    ("write", 32),
    ("write-neighbours", 32),
    ("registers", 1),
    ("whole", 1),
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["run", kind, depth, rounds] => {
            let (Ok(depth), Ok(rounds)) = (depth.parse(), rounds.parse()) else {
                panic!("expected numbers, not {depth} and {rounds}");
            };
            run(kind, depth, rounds);
        }
        // Whatever cargo and criterion say beside it; as a test there is nothing to be done.
        _ if words.contains(&"--test") => {}
        _ => report(),
    }
}

fn run(kind: &str, depth: u16, rounds: u64) {
    let shape = Shape {
        write: kind.starts_with("write"),
        neighbours: kind.ends_with("neighbours"),
        ..Shape::read(depth)
    };
    match kind {
        "registers" => {
            let mut registers = Registers::new();
            (0..rounds).for_each(|_| registers.request(|| {}));
        }
        "whole" => {
            let (mut registers, mut disk) = (Registers::new(), Disk::new(shape));
            (0..rounds).for_each(|_| registers.request(|| disk.round()));
        }
        _ => {
            let mut disk = Disk::new(shape);
            (0..rounds).for_each(|_| disk.round());
        }
    }
}

fn report() {
    let mut failed = false;
    for (kind, depth) in CASES {
        let [few, many] = ROUNDS.map(|rounds| count(kind, depth, rounds));
        match (few, many) {
            (Ok(few), Ok(many)) => {
                let each = (many - few) / (ROUNDS[1] - ROUNDS[0]) / u64::from(depth);
                println!("{kind} 4K x {depth}: {each} instructions");
            }
            (Err(error), _) | (_, Err(error)) => {
                println!("{kind} 4K x {depth}: not counted: {error}");
                failed = true;
            }
        }
    }
    if failed {
        println!("valgrind counts: apt-get install valgrind");
    }
    let _disk = Disk::new(Shape::read(32));
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    for line in status.lines().filter(|line| line.starts_with("Rss")) {
        println!("at rest with a disk and 8 MiB of guest RAM: {line}");
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
