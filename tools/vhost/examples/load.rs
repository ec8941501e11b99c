//! Generates load on a vhost-user-blk server and measures it:
//! `load SOCKET [--depth N] [--seconds S] [--write] [--pid PID]`.
//!
//! One queue, random blocks of 4 KiB, `--depth` requests in flight. Prints requests per second and the
//! server's CPU time per request (`--pid`).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Parser;
use ringvhost::front::Request;
use support::{BASE, Client, connect};

const BLOCK: u64 = 4096;

#[derive(Parser)]
struct Options {
    /// The server's socket.
    socket: PathBuf,
    /// Requests in flight, up to 128.
    #[arg(long, default_value_t = 1)]
    depth: u16,
    /// Duration in seconds.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Write instead of read.
    #[arg(long)]
    write: bool,
    /// The server's process, whose CPU time is measured.
    #[arg(long)]
    pid: Option<u32>,
}

/// CPU time of all threads of a process, also of those that have ended, in microseconds.
fn cpu(pid: u32) -> f64 {
    let ticks = rustix::param::clock_ticks_per_second() as f64;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("the server's process");
    let behind = stat.rsplit(')').next().expect("a name in brackets");
    let fields: Vec<&str> = behind.split_whitespace().collect();
    let time = |index: usize| fields[index].parse::<f64>().expect("a number");
    (time(11) + time(12)) / ticks * 1e6
}

fn main() {
    let options = Options::parse();
    let mut client = Client::new(connect(&options.socket), 1).expect("a server");
    let blocks = client.info().size / BLOCK;
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut push = |client: &mut Client, buffer: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        let offset = seed % blocks * BLOCK;
        let request = if options.write {
            Request::Write { offset }
        } else {
            Request::Read { offset }
        };
        assert!(client.rings.rings[0].push(buffer, request, &[(BASE + buffer * BLOCK, BLOCK as u32)]));
    };
    for buffer in 0..u64::from(options.depth) {
        push(&mut client, buffer);
    }
    let warm = Duration::from_millis(300);
    let begin = Instant::now();
    let (mut from, mut count, mut cpu_before) = (begin, 0_u64, None);
    client.publish(0);
    loop {
        let done = client.next(0, Duration::from_secs(10)).expect("an answer");
        assert_eq!(done.status, 0);
        count += 1;
        push(&mut client, done.token);
        // All requests that replace completed ones share one notification.
        while let Some(done) = client.rings.rings[0].pop().expect("no fault") {
            assert_eq!(done.status, 0);
            count += 1;
            push(&mut client, done.token);
        }
        client.publish(0);
        if from == begin && begin.elapsed() > warm {
            (from, count) = (Instant::now(), 0);
            cpu_before = options.pid.map(cpu);
        }
        if from != begin && from.elapsed().as_secs_f64() > options.seconds {
            break;
        }
    }
    let seconds = from.elapsed().as_secs_f64();
    let mut line = format!(
        "depth {} {} {:.0} requests/s",
        options.depth,
        if options.write { "write" } else { "read" },
        count as f64 / seconds
    );
    if let (Some(pid), Some(before)) = (options.pid, cpu_before) {
        line += &format!(", server {:.2} us/request", (cpu(pid) - before) / count as f64);
    }
    println!("{line}");
    // The server must complete the requests in flight before it releases the memory.
    client.connection.stop().expect("an orderly end");
}
