//! The owner of a CPU, found by its number and dispatched statically.

use ringvisor::abi::ROOT_ZONE;
use ringvisor::cpu_state;

use super::cpu::Cpu;
use super::owner::RootOrZone;
use super::root::Root;
use super::zone::Zone;

/// The owner of a CPU.
pub type Current = RootOrZone<&'static Root, &'static Zone>;

impl Current {
    /// Returns the owner of the vCPU that `cpu` runs. An idle CPU has one only if that is root: a zone may be
    /// destroyed while its CPUs are idle.
    #[inline]
    pub fn running_on(cpu: &Cpu) -> Option<Self> {
        if cpu.owner() == ROOT_ZONE || cpu.is_running() {
            Self::ordered_on(cpu)
        } else {
            None
        }
    }

    /// Returns the owner of `cpu`, which has been ordered to start or stop: a zone is not destroyed before
    /// that is done.
    pub fn ordered_on(cpu: &Cpu) -> Option<Self> {
        if cpu.owner() == ROOT_ZONE {
            return Root::get().map(Self::Root);
        }
        Zone::of(cpu).map(Self::Zone)
    }

    /// Returns for whom the CPU's control registers are set.
    pub fn kind(self) -> cpu_state::Owner {
        match self {
            Self::Root(_) => cpu_state::Owner::Root,
            Self::Zone(_) => cpu_state::Owner::Zone,
        }
    }

    /// Returns whether it is root.
    pub fn is_root(self) -> bool {
        self.kind() == cpu_state::Owner::Root
    }
}
