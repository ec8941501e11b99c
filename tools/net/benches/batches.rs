//! `cargo bench -p ringnet --bench batches`: processor time for each packet that is written to a tap, by a
//! system call each, and by an io_uring in batches. Needs the right to make a network namespace with a tap.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "what fails is not measured"
)]

use std::os::fd::{AsRawFd, RawFd};
use std::process::Command;

use io_uring::{IoUring, opcode, types};
use ringnet::port::HEADER;

/// Packets of a run.
const PACKETS: usize = 64_000;
/// Packets of a batch.
const BATCHES: [usize; 3] = [4, 32, 128];
/// Runs of each way, in turn: the machine may do other things at times.
const RUNS: usize = 5;

fn main() {
    if std::env::args().any(|word| word == "--test") {
        return;
    }
    // SAFETY: no other thread runs.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        println!("not measured: a network namespace needs root");
        return;
    }
    let queues = ringnet::tap::open("tap0", 1).expect("/dev/net/tun");
    let tap = ringnet::Tap::new(
        queues
            .iter()
            .map(|queue| queue.try_clone().expect("a descriptor"))
            .collect(),
    );
    let _tap = tap.expect("a tap");
    let up = Command::new("ip").args(["link", "set", "tap0", "up"]).status();
    assert!(up.is_ok_and(|status| status.success()), "`ip` of iproute2");
    let fd = queues[0].as_raw_fd();
    for len in [60, 1514] {
        let mut packet = vec![0; HEADER + len];
        // To nobody: the kernel drops it where a bridge would take it.
        packet[HEADER..HEADER + 6].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
        packet[HEADER + 12..HEADER + 14].copy_from_slice(&[0x88, 0xb5]);
        let mut best = [u64::MAX; 1 + BATCHES.len()];
        for _ in 0..RUNS {
            best[0] = best[0].min(timed(|| one_by_one(fd, &packet)));
            for (best, batch) in best[1..].iter_mut().zip(BATCHES) {
                *best = (*best).min(timed(|| in_batches(fd, &packet, batch)));
            }
        }
        println!("{len} bytes, a call each: {} ns", best[0]);
        for (best, batch) in best[1..].iter().zip(BATCHES) {
            println!("{len} bytes, io_uring by {batch}: {best} ns");
        }
    }
}

/// Processor time of this process, user and system, for each packet, in nanoseconds.
fn timed(run: impl FnOnce()) -> u64 {
    let before = processor_time();
    run();
    (processor_time() - before) / PACKETS as u64
}

fn processor_time() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: room for a timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn one_by_one(fd: RawFd, packet: &[u8]) {
    let part = libc::iovec {
        iov_base: packet.as_ptr().cast_mut().cast(),
        iov_len: packet.len(),
    };
    for _ in 0..PACKETS {
        // SAFETY: a valid buffer.
        let written = unsafe { libc::writev(fd, &raw const part, 1) };
        assert_eq!(written, packet.len() as isize);
    }
}

fn in_batches(fd: RawFd, packet: &[u8], batch: usize) {
    let mut ring = IoUring::new(batch as u32).expect("io_uring");
    let part = libc::iovec {
        iov_base: packet.as_ptr().cast_mut().cast(),
        iov_len: packet.len(),
    };
    let entry = opcode::Writev::new(types::Fd(fd), &raw const part, 1).build();
    for _ in 0..PACKETS / batch {
        for _ in 0..batch {
            // SAFETY: packet and part outlive the operation, which completes below.
            unsafe { ring.submission().push(&entry) }.expect("room for a batch");
        }
        ring.submit_and_wait(batch).expect("submitted");
        let written = ring
            .completion()
            .filter(|done| done.result() == packet.len() as i32)
            .count();
        assert_eq!(written, batch);
    }
}
