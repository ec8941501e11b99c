//! Disks: their configuration ([`config`]), opening and locking their images ([`open`], `locked`), an open
//! disk ([`handle`]) and I/O on the calling thread (`blocking`).

mod blocking;
pub mod config;
pub mod handle;
mod locked;
pub mod open;

pub use config::{DiskConfig, EngineKind, Format, HostCache};
pub use handle::Disk;
pub use open::{OpenContext, OpenOptions};
