//! The generic front end: a device whose virtqueues another process serves on the driver's own rings.
//!
//! The server gets the guest's memory and the addresses of the rings; the daemon forwards notifications of
//! the driver as kicks and calls of the server as interrupts, and does what the protocol has no message for.
//! What a server does not have (CONFIG, MQ, REPLY_ACK, INFLIGHT, EVENT_IDX) it needs not.
//!
//! [`Front`] is such a device's connection. The socket and the event descriptors come from another process
//! ([`Descriptors`]) and outlive the daemon; what was said over the connection is in [`state`]. So a
//! successor goes on without a message, and the server notices nothing. A message is sent by one call, which
//! the kernel carries out wholly or not at all; while an answer is outstanding the state says that nothing is
//! known, and a successor connects anew.
//!
//! [`message`] the messages · [`session`] a negotiated connection · [`link`] the thread that has it ·
//! [`queue`] the daemon's side of a queue · [`call`] interrupts from a server · [`net`] network devices

pub mod call;
pub mod descriptors;
pub mod front;
pub mod link;
pub mod message;
pub mod net;
pub mod queue;
pub mod session;
pub mod state;

pub use descriptors::{Descriptors, FrontOptions};
pub use front::Front;
pub use net::NetServer;
pub use state::State;
