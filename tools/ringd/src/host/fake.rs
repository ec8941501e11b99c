//! A [`Host`] without privileges: CPUs are a list, RAM is an ordinary temporary file, physical addresses are
//! made up. Each operation can be made to fail.

use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};

use super::{Cpu, Host, Ram, RamError, ram};
use crate::config::zone::BLOCK;

/// A step that can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// This CPU cannot be taken offline.
    Offline(u32),
    /// No RAM.
    Ram,
}

/// A root Linux without privileges.
pub struct FakeHost {
    /// Where RAM files lie.
    directory: PathBuf,
    state: Mutex<State>,
}

struct State {
    cpus: Vec<Cpu>,
    free_pages: u64,
    fault: Option<Fault>,
    /// The file of [`FakeHost::watch_creation`].
    watched: Option<(PathBuf, bool)>,
}

impl FakeHost {
    /// Returns a machine with CPUs 0 to `cpus - 1` and `pages` huge pages, whose files lie in `directory`.
    pub fn new(directory: PathBuf, cpus: u32, pages: u64) -> Self {
        let cpu = |number: u32| Cpu {
            number,
            online: true,
            mpidr: number.into(),
            spare: false,
        };
        let state = State {
            cpus: (0..cpus).map(cpu).collect(),
            free_pages: pages,
            fault: None,
            watched: None,
        };
        Self {
            directory,
            state: Mutex::new(state),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Sets what fails from now on.
    pub fn set_fault(&self, fault: Option<Fault>) {
        self.state().fault = fault;
    }

    /// Records from now on whether this file exists when RAM is made.
    pub fn watch_creation(&self, file: PathBuf) {
        self.state().watched = Some((file, false));
    }

    /// Whether the file of [`Self::watch_creation`] existed when RAM was last made.
    pub fn was_there(&self) -> bool {
        self.state().watched.as_ref().is_some_and(|(_, there)| *there)
    }

    /// Makes a CPU one that root has never started.
    pub fn never_start(&self, cpu: u32) {
        let mut state = self.state();
        for entry in state.cpus.iter_mut().filter(|entry| entry.number == cpu) {
            (entry.online, entry.spare) = (false, true);
        }
    }

    /// Returns the number of huge pages not in use.
    pub fn free_pages(&self) -> u64 {
        self.state().free_pages
    }

    /// Returns the numbers of the CPUs that are online.
    pub fn online(&self) -> Vec<u32> {
        self.state()
            .cpus
            .iter()
            .filter(|cpu| cpu.online)
            .map(|cpu| cpu.number)
            .collect()
    }

    fn path(&self, zone: &str) -> PathBuf {
        self.directory.join(format!("{zone}.ram"))
    }
}

impl Host for FakeHost {
    fn cpus(&self) -> io::Result<Vec<Cpu>> {
        Ok(self.state().cpus.clone())
    }

    fn set_online(&self, cpu: u32, online: bool) -> io::Result<()> {
        let mut state = self.state();
        if !online && state.fault == Some(Fault::Offline(cpu)) {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        let entry = state.cpus.iter_mut().find(|entry| entry.number == cpu);
        entry.ok_or(io::ErrorKind::NotFound)?.online = online;
        Ok(())
    }

    fn create_ram(&self, zone: &str, bytes: u64) -> Result<Ram, RamError> {
        let pages = bytes.div_ceil(BLOCK);
        let mut state = self.state();
        if let Some((file, there)) = &mut state.watched {
            *there = file.exists();
        }
        let free = state.free_pages;
        if state.fault == Some(Fault::Ram) || free < pages {
            return Err(RamError::NoHugePages {
                wanted: pages,
                free,
                added: 0,
            });
        }
        state.free_pages = free.saturating_sub(pages);
        drop(state);
        let made = ram::map(ram::open_file(&self.path(zone), bytes, true)?, bytes)?;
        Ok(Ram {
            blocks: (0..pages).map(|page| 0x8000_0000 + page * BLOCK).collect(),
            ..made
        })
    }

    fn open_ram(&self, zone: &str, bytes: u64) -> Result<Ram, RamError> {
        ram::map(ram::open_file(&self.path(zone), bytes, false)?, bytes)
    }

    fn remove_ram(&self, zone: &str, _added: u64) -> io::Result<()> {
        let path = self.path(zone);
        if let Ok(file) = path.metadata() {
            self.state().free_pages += file.len().div_ceil(BLOCK);
            std::fs::remove_file(path)?;
        }
        Ok(())
    }
}
