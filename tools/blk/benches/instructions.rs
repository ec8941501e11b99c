//! `cargo bench`: instructions for each request, and the memory of a process with a disk at rest. What
//! `requests.rs` measures, in numbers that do not depend on what else the machine does.

mod support;

use ringvirtio::fake::instructions;

use support::{Disk, Registers, Shape};

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
    if !instructions::count(&CASES, "4K", run) {
        return;
    }
    let _disk = Disk::new(Shape::read(32));
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    for line in status.lines().filter(|line| line.starts_with("Rss")) {
        println!("at rest with a disk and 8 MiB of guest RAM: {line}");
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
            assert!(disk.interrupts() > 0);
        }
    }
}
