//! Requests for `valgrind --tool=callgrind` or `perf stat` to count: `requests read|write DEPTH ROUNDS [neighbours]`,
//! or `requests registers 1 ROUNDS`; `requests rest` opens a disk and shows the process's memory.
//! tools/blk/benches/instructions.sh runs it.

#[path = "../benches/support/mod.rs"]
mod support;

use support::{Disk, Registers, Shape};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let text = |index: usize| args.get(index).map_or("", String::as_str);
    let number = |index: usize| text(index).parse::<u32>().unwrap_or(1);
    match text(0) {
        "registers" => {
            let mut registers = Registers::new();
            for _ in 0..number(2) {
                registers.request();
            }
        }
        "rest" => {
            let _disk = Disk::new(Shape {
                path: "null:64M",
                write: false,
                depth: 32,
                neighbours: false,
            });
            let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
            for line in status.lines().filter(|line| line.starts_with("Rss")) {
                println!("{line}");
            }
        }
        kind @ ("read" | "write") => {
            let mut disk = Disk::new(Shape {
                path: "null:64M",
                write: kind == "write",
                depth: number(1) as u16,
                neighbours: text(3) == "neighbours",
            });
            for _ in 0..number(2) {
                disk.round();
            }
        }
        other => eprintln!("requests: {other:?}, expected read, write, registers or rest"),
    }
}
