//! Migration of a disk to another image while its guest uses it.
//!
//! The guest's requests go through the [`Migration`]; [`Migration::copy`] copies the rest, chunk by chunk
//! from the beginning; [`Migration::verify`] compares. Then, while nothing is in flight, the caller switches
//! the guest to the target. Invariants until then:
//!
//! 1. *The source is complete.* Every write goes there first; reads and flushes go only there. So the
//!    migration can be cancelled at any time, by an error, by the user, or by SIGKILL.
//! 2. *In its first [`Progress`] bytes the target equals the source*, except for writes that have not
//!    completed. A write completes when both have it. The guest's bytes are copied once, because it could
//!    change them between the two writes.
//! 3. *No two threads access the same bytes at the same time* (`ranges`): overlapping writes reach both disks
//!    in one order, and none falls between the read and the write of a chunk.
//! 4. *The progress outlives the process*: it is in memory of a file. It grows after the target has a chunk,
//!    and is zeroed before a write completes that the target has failed. So a daemon that finds it after a
//!    SIGKILL resumes there, after it has rerun, through a migration, the requests of the in-flight log: the
//!    target can lack nothing else.
//! 5. *Losses are found.* A server that goes down loses what it had not made durable; each possible loss is
//!    counted ([`RemoteImage::write_losses`](crate::remote::RemoteImage::write_losses)), and everything is
//!    compared again (`compare`).
//!
//! A migration is a [`RemoteDisk`](crate::remote::RemoteDisk), because it has an engine of its own.

mod compare;
mod migration;
mod ranges;
mod serve;

pub use migration::{Migration, MigrationError, Progress, Step};
