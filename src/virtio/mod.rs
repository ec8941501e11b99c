//! EL2's virtio-mmio transport, version 2 (virtio 1.2, section 4.2): the registers of a device whose queues are
//! worked on by the daemon.
//!
//! [`Transport`] is the truth about one device. A guest's stores trap and come to [`Transport::write`]; its loads
//! do not trap: they read a page that is mapped read-only and that the transport keeps current through
//! [`RegisterPage`]. The transport knows nothing of traps, rings or interrupts: it answers with an [`Effect`].
//!
//! Parts: [`registers`] (offsets and bits), [`features`], [`spec`] (what a device offers, checked), [`queue`],
//! `config` (configuration space), [`transport`] (the driver's side), `daemon` (the
//! other side). [`fake`] plays page and RAM in tests.
//!
//! # What a plain page cannot do
//! The specification lets a driver read control registers only by aligned 32-bit loads. A narrower or wider load
//! from the page gives the bytes that lie there instead of zero; it changes nothing and tells nothing that a
//! 32-bit load would not.
//!
//! No order of stores makes an update of several words atomic for a driver that compares ConfigGeneration before
//! and after its reads, since it is EL2 and not the driver that is between them. Whoever calls
//! [`Transport::config_changed`] for a field wider than 32 bits while vCPUs run takes the page out of stage 2
//! for that time: loads fault and are simply tried again.

mod config;
mod daemon;
mod driver;
mod effect;
pub mod fake;
pub mod features;
mod memory;
pub mod queue;
pub mod registers;
pub mod spec;
pub mod transport;

pub use effect::{Effect, Event, Rejected};
pub use memory::{GuestRam, RegisterPage};
pub use spec::{Spec, SpecError};
pub use transport::Transport;
