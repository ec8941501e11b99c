//! The reactor: one thread that waits in one place and serves many queues of many zones.
//!
//! A [`Reactor`] is made anywhere and run on its own thread. A [`ReactorHandle`] commands it from others, an
//! [`EventSource`] on its own thread, both with the same [`Commands`].
//!
//! One round: carry out commands and collect events, service the ready queues, publish what completed, wait
//! for more that one interrupt may cover, busy-poll, arm the event sources, sleep; then handle completions.
//! Only the mailbox of other threads is ever locked. A queue that waits for a rate limit gives the sleep a
//! timeout.

mod busy_poll;
mod commands;
mod core;
mod idle;
mod schedule;
mod sources;
mod table;
mod thread;

pub use commands::{Callback, Commands, EventSource, Message, QueueId, ReactorHandle};
pub use thread::{Reactor, ReactorOptions};
