//! What users write: zone files and command-line options.
//!
//! [`zone::ZoneConfig`] is the checked description of a zone that travels from `ringctl` to the daemon and
//! into the zone's record; its devices are described in [`crate::device`]. [`mod@file`] makes it from a TOML
//! file or from options, [`boot`] is what a file says of the machine's start, [`keys`] takes a table apart,
//! [`size`] reads and prints sizes, [`error`] is why a description is refused.

pub mod boot;
pub mod error;
pub mod file;
pub mod keys;
pub mod size;
pub mod zone;

pub use error::quoted;
pub use zone::{Cpus, OnCrash, OnReboot, ZoneConfig, is_zone_name};
