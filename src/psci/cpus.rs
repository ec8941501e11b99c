//! Which of a zone's CPUs are on: [`CpuTable`] decides CPU_ON, CPU_OFF and AFFINITY_INFO (DEN 0022,
//! 5.1.3-5.1.5).
//!
//! EL2 keeps the table under the zone's lock, so of two vCPUs that turn on the same third one gets success
//! and the other ON_PENDING. A CPU is [`CpuState::OnPending`] from the accepted CPU_ON until it has entered
//! the guest, when EL2 calls [`CpuTable::entered`].

use arrayvec::ArrayVec;

use super::{Error, Mpidr};

/// State of a CPU in PSCI's terms; the numbers are AFFINITY_INFO's results.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum CpuState {
    /// On.
    On = 0,
    /// Off.
    Off = 1,
    /// Turned on, and not yet running.
    OnPending = 2,
}

/// The zone's CPUs after a CPU_OFF.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AfterOff {
    /// Other CPUs are on or on pending.
    OthersOn,
    /// It was the last one: no CPU of the zone can turn another one on.
    AllOff,
}

/// States of up to `N` CPUs.
#[derive(Clone, Debug)]
pub struct CpuTable<const N: usize> {
    cpus: ArrayVec<(Mpidr, CpuState), N>,
}

impl<const N: usize> CpuTable<N> {
    /// Returns a table of `mpidrs`, all off; those past `N` are dropped.
    pub fn new(mpidrs: impl IntoIterator<Item = Mpidr>) -> Self {
        Self {
            cpus: mpidrs
                .into_iter()
                .take(N)
                .map(|mpidr| (mpidr, CpuState::Off))
                .collect(),
        }
    }

    /// Returns a table of a guest's `vcpus` CPUs with the affinities of QEMU's `virt`, all off.
    pub fn guest(vcpus: usize) -> Self {
        Self::new((0..vcpus).map(Mpidr::of_vcpu))
    }

    /// Returns the number of CPUs in the table.
    pub fn len(&self) -> usize {
        self.cpus.len()
    }

    /// Returns whether the table is empty.
    pub fn is_empty(&self) -> bool {
        self.cpus.is_empty()
    }

    /// Returns the state of a CPU by number.
    pub fn state(&self, cpu: usize) -> Option<CpuState> {
        self.cpus.get(cpu).map(|&(_, state)| state)
    }

    /// Returns the affinity of a CPU by number.
    pub fn mpidr(&self, cpu: usize) -> Option<Mpidr> {
        self.cpus.get(cpu).map(|&(mpidr, _)| mpidr)
    }

    /// Returns the number of the CPU with this affinity.
    pub fn find(&self, mpidr: Mpidr) -> Option<usize> {
        self.cpus.iter().position(|&(other, _)| other == mpidr)
    }

    /// Returns the number of CPUs that are on or on pending.
    pub fn count_on(&self) -> usize {
        self.cpus
            .iter()
            .filter(|&&(_, state)| state != CpuState::Off)
            .count()
    }

    /// Executes CPU_ON. On success the caller must start the returned CPU. `entry_ok`: the entry point is in
    /// the zone's RAM.
    ///
    /// # Errors
    /// As CPU_ON: the affinity is unknown, the CPU is on or on pending, or the entry point is not valid.
    pub fn cpu_on(&mut self, target: u64, entry_ok: bool) -> Result<usize, Error> {
        let cpu = Mpidr::from_argument(target)
            .and_then(|mpidr| self.find(mpidr))
            .ok_or(Error::InvalidParameters)?;
        let (_, state) = self.cpus.get_mut(cpu).ok_or(Error::InvalidParameters)?;
        match *state {
            CpuState::On => Err(Error::AlreadyOn),
            CpuState::OnPending => Err(Error::OnPending),
            CpuState::Off if !entry_ok => Err(Error::InvalidAddress),
            CpuState::Off => {
                *state = CpuState::OnPending;
                Ok(cpu)
            }
        }
    }

    /// Marks an on-pending CPU as on: it has entered the guest. Does nothing in other states.
    pub fn entered(&mut self, cpu: usize) {
        if let Some((_, state @ CpuState::OnPending)) = self.cpus.get_mut(cpu) {
            *state = CpuState::On;
        }
    }

    /// Marks an on-pending CPU as off: it could not be started.
    pub fn start_failed(&mut self, cpu: usize) {
        if let Some((_, state @ CpuState::OnPending)) = self.cpus.get_mut(cpu) {
            *state = CpuState::Off;
        }
    }

    /// Executes CPU_OFF by `cpu`.
    ///
    /// # Errors
    /// [`Error::Denied`] if it is not on, which a caller never is.
    pub fn cpu_off(&mut self, cpu: usize) -> Result<AfterOff, Error> {
        match self.cpus.get_mut(cpu) {
            Some((_, state @ CpuState::On)) => *state = CpuState::Off,
            _ => return Err(Error::Denied),
        }
        Ok(if self.count_on() == 0 {
            AfterOff::AllOff
        } else {
            AfterOff::OthersOn
        })
    }

    /// Executes AFFINITY_INFO: on if any CPU of the affinity instance is on, else on pending if any is, else
    /// off.
    ///
    /// # Errors
    /// [`Error::InvalidParameters`] for an unknown instance or level.
    pub fn affinity_info(&self, target: u64, lowest_level: u32) -> Result<CpuState, Error> {
        let target = Mpidr::from_argument(target).ok_or(Error::InvalidParameters)?;
        if lowest_level > 3 {
            return Err(Error::InvalidParameters);
        }
        let members = || {
            self.cpus
                .iter()
                .filter(|&&(mpidr, _)| mpidr.same_from(target, lowest_level))
                .map(|&(_, state)| state)
        };
        if members().next().is_none() {
            return Err(Error::InvalidParameters);
        }
        Ok([CpuState::On, CpuState::OnPending]
            .into_iter()
            .find(|&wanted| members().any(|state| state == wanted))
            .unwrap_or(CpuState::Off))
    }

    /// Sets the state at the start of a zone: `boot` is on pending, all others are off.
    pub fn reset(&mut self, boot: usize) {
        for (index, (_, state)) in self.cpus.iter_mut().enumerate() {
            *state = if index == boot {
                CpuState::OnPending
            } else {
                CpuState::Off
            };
        }
    }

    /// Sets all CPUs off, at the stop of a zone.
    pub fn all_off(&mut self) {
        for (_, state) in &mut self.cpus {
            *state = CpuState::Off;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{AfterOff, CpuState, CpuTable};
    use crate::psci::Error;

    fn table() -> CpuTable<20> {
        let mut table = CpuTable::guest(18);
        table.reset(0);
        table.entered(0);
        table
    }

    // torture d5
    #[test]
    fn cpu_on_twice() {
        let mut table = table();
        assert_eq!(table.cpu_on(1, true), Ok(1));
        assert_eq!(table.cpu_on(1, true), Err(Error::OnPending));
        table.entered(1);
        assert_eq!(table.cpu_on(1, true), Err(Error::AlreadyOn));
        assert_eq!(
            table.cpu_on(0, false),
            Err(Error::AlreadyOn),
            "the state is looked at first"
        );
    }

    // torture d5
    #[test]
    fn foreign_and_invalid_affinities() {
        let mut table = table();
        for target in [18, 0x102, 0x10000, 1 << 32, 1 << 24, 0x8000_0001, u64::MAX] {
            assert_eq!(
                table.cpu_on(target, true),
                Err(Error::InvalidParameters),
                "{target:#x}"
            );
            assert_eq!(table.affinity_info(target, 0), Err(Error::InvalidParameters));
        }
        assert_eq!(table.cpu_on(0x101, true), Ok(17), "cluster 1, CPU 1");
    }

    #[test]
    fn a_bad_entry_point_starts_nothing() {
        let mut table = table();
        assert_eq!(table.cpu_on(2, false), Err(Error::InvalidAddress));
        assert_eq!(table.state(2), Some(CpuState::Off));
    }

    // torture d5
    #[test]
    fn the_last_cpu_off_is_reported() {
        let mut table = table();
        table.cpu_on(1, true).unwrap();
        assert_eq!(table.cpu_off(1), Err(Error::Denied), "not on yet");
        assert_eq!(table.cpu_off(0), Ok(AfterOff::OthersOn), "one is on its way");
        table.entered(1);
        assert_eq!(table.cpu_off(1), Ok(AfterOff::AllOff));
        assert_eq!(table.cpu_off(1), Err(Error::Denied));
        assert_eq!(table.cpu_on(0, true), Ok(0), "the boot CPU is like any other");
        table.start_failed(0);
        assert_eq!(table.state(0), Some(CpuState::Off));
        table.entered(0);
        assert_eq!(table.state(0), Some(CpuState::Off), "it was not on its way");
    }

    #[test]
    fn affinity_info_by_level() {
        let mut table = table();
        assert_eq!(table.affinity_info(0, 0), Ok(CpuState::On));
        assert_eq!(table.affinity_info(1, 0), Ok(CpuState::Off));
        assert_eq!(
            table.affinity_info(0x55, 1),
            Ok(CpuState::On),
            "fields below the level do not count"
        );
        assert_eq!(table.affinity_info(0x100, 1), Ok(CpuState::Off));
        table.cpu_on(0x100, true).unwrap();
        assert_eq!(table.affinity_info(0x100, 1), Ok(CpuState::OnPending));
        assert_eq!(table.affinity_info(0, 3), Ok(CpuState::On));
        assert_eq!(table.affinity_info(0, 4), Err(Error::InvalidParameters));
    }

    #[test]
    fn more_cpus_than_room_are_dropped() {
        assert_eq!(CpuTable::<2>::guest(5).len(), 2);
    }
}
