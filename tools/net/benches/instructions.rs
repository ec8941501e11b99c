//! `cargo bench -p ringnet --bench instructions`: instructions for each packet. The port transfers nothing:
//! the kernel's part, one system call for each packet, is in `batches.rs`.

mod support;

use ringvirtio::fake::instructions;

use support::Card;

/// Directions and how many packets come together.
const CASES: [(&str, u16); 4] = [("transmit", 1), ("transmit", 32), ("receive", 1), ("receive", 32)];

fn main() {
    instructions::count(&CASES, "1514", |kind, depth, rounds| {
        let mut card = Card::new(kind == "receive", depth);
        (0..rounds).for_each(|_| card.round());
    });
}
