//! Why the machine cannot be used: [`MachineError`].

use alloc::string::String;

use thiserror::Error;

use super::blob::BlobError;
use super::region::Region;

/// Why the machine cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum MachineError {
    /// The blob is not a device tree.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// A property has a length or value that its binding does not allow.
    #[error("{path}: bad property {property}")]
    Property {
        /// The node.
        path: String,
        /// The property.
        property: &'static str,
    },
    /// No enabled `memory` node.
    #[error("no memory in the device tree")]
    NoMemory,
    /// No node under `/cpus`.
    #[error("no CPU in the device tree")]
    NoCpu,
    /// More than [`crate::abi::MAX_CPUS`].
    #[error("more than 64 CPUs in the device tree")]
    TooManyCpus,
    /// Two CPUs have this `reg`.
    #[error("two CPUs with reg {0:#x}")]
    DuplicateCpu(u64),
    /// No PSCI 0.2 or later, by which CPUs are started.
    #[error("no arm,psci-0.2 or later in the device tree")]
    NoPsci,
    /// No enabled `arm,gic-v3`.
    #[error("no arm,gic-v3 in the device tree")]
    NoGic,
    /// A boot module is not in RAM.
    #[error("the boot loader put root's {module} at {region}, where there is no RAM")]
    ModuleNotInRam {
        /// Which.
        module: &'static str,
        /// Where it lies.
        region: Region,
    },
    /// A boot module shares addresses with something else, so one of the two is damaged.
    #[error(
        "the boot loader put root's {module} at {region}, over {other} at {taken}: choose another address"
    )]
    ModuleOverlap {
        /// Which.
        module: &'static str,
        /// Where it lies.
        region: Region,
        /// What is there too.
        other: &'static str,
        /// Where that lies.
        taken: Region,
    },
}
