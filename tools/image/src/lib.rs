//! Makes what a ringvisor machine boots, from Debian's arm64 packages and a few scripts of ours.
//!
//! Everything is put into the project's cache directory ([`Cache`]) under names that carry a hash of all
//! inputs, so a second run finds everything in place and a changed input makes a new file. No root privileges
//! are needed and the machine's own apt configuration is never touched.
//!
//! - [`apt`], [`mirror`]: a private apt state; resolves, downloads, unpacks.
//! - [`kernel`], [`zimg`], [`modules`]: from a kernel package to a raw arm64 `Image` and the modules a
//!   machine needs.
//! - [`userland`]: the directory tree of busybox, fio, e2fsprogs, util-linux, procps, kmod, bash;
//!   [`engines`]: fio without most of its libraries.
//! - [`cpio`], [`initramfs`], [`ext4`]: what the tree is packed into.
//! - [`qemu`]: QEMU 10 from backports, unpacked for the host.
//! - [`firmware`]: U-Boot and EDK2 for a zone's flash; [`bootable`]: a disk that they boot from.
//! - [`programs`]: programs for a test of a guest's disk.
//! - [`machine`]: the public entry points, used by `tools/harness`.

pub mod apt;
pub mod bootable;
pub mod cache;
pub mod cmd;
pub mod cpio;
pub mod engines;
pub mod ext4;
pub mod firmware;
pub mod initramfs;
pub mod kernel;
pub mod machine;
pub mod mirror;
pub mod modules;
pub mod programs;
pub mod qemu;
pub mod userland;
pub mod zimg;

pub use cache::Cache;
pub use kernel::Flavour;
pub use machine::BootFiles;
