//! The daemon that is the device behind a guest's virtio-mmio transport, and the command that talks to it.
//!
//! # Map
//! [`config`] what users write · [`device`] devices of zones, by kind · [`boot`] kernels and device trees ·
//! [`host`] root's CPUs and memory · [`hv`] EL2 · [`io`] the reactor: rings and queues · [`console`] ·
//! [`zone`] life cycle · [`stats`] counters · [`trace`] the path of requests · [`control`] the socket ·
//! [`daemon`] and [`cli`] the two programs, [`log`] · [`limits`], [`regular`] what guests and users may not
//! ask for · [`broker`], [`sandbox`] privileges · [`ports`] network ports, which outlive the daemon ·
//! [`supervise`], [`upgrade`], [`instance`] one daemon after the other
//!
//! Threads: the *reactor thread* ([`io`]) takes EL2's events off the zones' rings, serves queues and moves
//! console output; it never waits for the others. Each zone has a *zone thread* ([`zone::actor`]), each
//! connection of `ringctl` a *client thread* ([`control::server`]).
//!
//! Layers, lowest first: [`config`]'s parts, [`hv`], [`host`]; [`device`]'s descriptions and back ends;
//! [`io`]; [`device::devices`] and the changes of each kind; [`zone`]; [`control`], [`stats`], [`trace`];
//! [`cli`] and [`daemon`].
//!
//! Locks, outermost first: CPUs ([`zone::Context::cpus`]), a zone in the reactor's table ([`io`]), a console,
//! EL2's command slot ([`hv::device`]). The registry's, a zone's status and its devices' view are leaves.

pub mod boot;
pub mod broker;
pub mod cli;
pub mod config;
pub mod console;
pub mod control;
pub mod daemon;
pub mod device;
pub mod doctor;
pub mod host;
pub mod hv;
pub mod instance;
pub mod io;
pub mod limits;
pub mod log;
pub mod ports;
pub mod regular;
pub mod sandbox;
pub mod serve;
pub mod signals;
pub mod stats;
pub mod supervise;
pub mod trace;
pub mod upgrade;
pub mod zone;
