//! [`BlockQueue`]: a virtqueue of a block device. Pops requests, runs them through an engine, completes them.
//!
//! Requests are numbered by their descriptor head, so all slots are allocated at set-up, and each request is
//! a small state machine in its slot: `service` pops and parses it, `start` submits its operations,
//! `complete` handles their ends. Transfers of one round that are neighbours go as one (`batch`).
//!
//! A reactor drives it as a [`QueueHandler`](ringvirtio::QueueHandler); tests and benchmarks call
//! [`BlockQueue::service`] and [`BlockQueue::complete`] themselves, with any
//! [`Engine`](crate::engine::Engine). A file that fails may stop the queue
//! ([`OnError`](crate::control::OnError)), a limit may make it wait.

mod batch;
mod block_queue;
mod complete;
mod service;
mod slot;
mod start;
mod sync;

pub use block_queue::BlockQueue;
