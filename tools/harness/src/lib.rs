//! Boots ringvisor machines in QEMU: interactive, also under a debugger ([`interactive`]), scripted
//! ([`exec`]), and for the system tests ([`system`]); runs all stages of `make test` ([`suite`]); measures
//! ([`mod@bench`]).
//!
//! - [`board`]: `platform/<board>/board.toml`, the data a machine is started from.
//! - [`options`]: what the user may choose, from options or from the Makefile's variables.
//! - [`project`]: where the sources and what is built of them are.
//! - [`machine`], [`modules`]: a QEMU command line from all three, and a directory with the run's files.
//! - [`console`]: the machine's output, line by line, with the marks that root's scripts put into it.
//! - [`rundir`]: the directory with a run's files; [`shard`]: the part of a run that `SHARD` names.
//! - [`cpu`]: the wall and CPU time of a child process.
//! - [`symbols`]: functions and lines for the hypervisor's backtraces.

pub mod bench;
pub mod board;
pub mod console;
pub mod cpu;
pub mod exec;
pub mod interactive;
pub mod machine;
pub mod modules;
pub mod options;
pub mod project;
pub mod rundir;
pub mod shard;
pub mod suite;
pub mod symbols;
pub mod system;
