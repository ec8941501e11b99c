//! EL2's virtio-mmio transport, version 2 (virtio 1.2, section 4.2): the registers of a device whose queues
//! the daemon processes.
//!
//! [`Transport`] holds the state of one device. A guest's stores trap and go to [`Transport::write`]; its
//! loads do not trap: they read a page that is mapped read-only and that the transport updates through
//! [`RegisterPage`]. The transport knows no traps, rings or interrupts: it returns an [`Effect`].
//!
//! Parts: [`registers`] (offsets and bits), [`features`], [`spec`] (what a device offers, checked),
//! [`queue`], `config` (configuration space), [`transport`] (the state), `driver` (the driver's stores),
//! `daemon` (the device's side). [`fake`] has a page and RAM for tests.
//!
//! # Limits of a plain page
//! The specification lets a driver read control registers only by aligned 32-bit loads. A narrower or wider
//! load from the page returns the bytes that lie there; it has no side effect and reveals nothing that a
//! 32-bit load would not.
//!
//! An update of several words is not atomic for a driver that compares ConfigGeneration before and after its
//! reads: EL2 may run in between. A caller of [`Transport::config_changed`] for a field wider than 32 bits
//! therefore unmaps the page from stage 2 while vCPUs run: loads fault and are retried.

mod config;
mod daemon;
mod driver;
mod effect;
pub mod fake;
pub mod features;
pub mod queue;
pub mod registers;
pub mod spec;
pub mod transport;

pub use effect::{Effect, Event, Rejected};
pub use queue::{GuestRam, RegisterPage};
pub use spec::{Spec, SpecError};
pub use transport::Transport;
