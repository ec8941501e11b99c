//! Disks: virtio block devices on images, host block devices or vhost-user servers, by [`ringblk`].
//!
//! A zone has as many drives as it was started with, disks first, then spare ones. A drive without a medium
//! is a block device of capacity 0. So the guest's driver is there before its disk is, and attaching,
//! detaching and resizing are the same thing to it: a change of capacity.
//!
//! [`config`], [`keys`] what users write · [`open`] · [`backend`] the block device as the reactor's side uses
//! it · [`drives`], [`change`], [`migrate`] changes of drives of a zone that runs, on the zone's thread ·
//! [`migration`] a disk on its way to another image · [`view`] what client threads read · [`report`],
//! [`stats`] counters · [`cli`], [`mod@print`], [`top`] `ringctl`

pub mod backend;
pub mod change;
pub mod cli;
pub mod config;
pub mod drives;
pub mod keys;
pub mod migrate;
pub mod migration;
pub mod names;
pub mod open;
pub mod print;
pub mod report;
pub mod stats;
pub mod top;
pub mod view;
pub mod watch;

/// Bytes in a sector (virtio 1.2, 5.2).
pub const SECTOR: u64 = ringblk::virtio::SECTOR_SIZE;
