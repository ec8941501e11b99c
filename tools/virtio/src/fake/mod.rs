//! A guest for the tests of devices: the drivers of the `virtio-drivers` crate on guest RAM of their own
//! ([`Ram`]) and on a transport that adds queues to a reactor, as the daemon does ([`FakeTransport`]).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a panic is a failed test"
)]

pub mod instructions;
mod ram;
mod transport;

pub use ram::{BASE, Ram, SIZE, guest_memory};
pub use transport::{FakeDevice, FakeTransport, with_reactor};
