//! EL2's channel to the daemon: the PCI function whose interrupt wakes it, and the shared page.
//!
//! Root is not trusted: the shared page is only ever a source and a sink of plain words.

pub mod function;
pub mod shared_page;

use ringvisor::abi::command::CommandStatus;

/// Why a command is refused: the status and the offending value.
pub type Refusal = (CommandStatus, u64);
