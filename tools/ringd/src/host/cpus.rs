//! Root's CPUs: listing them, choosing those of a zone, taking them offline and bringing them back.

use std::fs;
use std::io;
use std::path::Path;

use crate::config::Cpus;

/// One CPU of root Linux.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// Linux's number.
    pub number: u32,
    /// Whether it is online.
    pub online: bool,
    /// Affinity fields of MPIDR_EL1, as the device tree's `reg` has them.
    pub mpidr: u64,
    /// Whether root has not started it since its boot (`maxcpus=`) and no zone has it.
    pub spare: bool,
}

/// Why a zone cannot have the CPUs it asks for.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// Root can spare fewer.
    #[error("at most {available}: root keeps CPU 0, and those in use by zones are not available")]
    TooFew {
        /// That many could be.
        available: usize,
    },
    /// CPU 0 is asked for.
    #[error("CPUs other than 0, which root keeps")]
    Zero,
    /// The machine has no such CPU; the highest number it has.
    #[error("CPUs of this machine, 1 to {1}; there is no CPU {0}")]
    Missing(u32, u32),
    /// The CPU is offline: another zone has it, or an administrator took it offline.
    #[error("CPUs that are online in root, but CPU {0} is busy: held by a zone, or offline")]
    Offline(u32),
}

/// Chooses the CPUs for a zone, in the order of its vCPUs: those named, or the highest-numbered ones, spare
/// ones before those that are online. CPU 0 stays with root.
///
/// # Errors
/// See [`Unavailable`].
pub fn choose(cpus: &[Cpu], wanted: &Cpus) -> Result<Vec<Cpu>, Unavailable> {
    match wanted {
        Cpus::Count(_) => {
            let mut free: Vec<Cpu> = cpus
                .iter()
                .filter(|cpu| (cpu.online || cpu.spare) && cpu.number != 0)
                .copied()
                .collect();
            free.sort_by_key(|cpu| (cpu.spare, cpu.number));
            let first = free.len().checked_sub(wanted.count());
            let first = first.ok_or(Unavailable::TooFew {
                available: free.len(),
            })?;
            let mut chosen = free.split_off(first);
            chosen.sort_by_key(|cpu| cpu.number);
            Ok(chosen)
        }
        Cpus::List(list) => list
            .iter()
            .map(|number| {
                if *number == 0 {
                    return Err(Unavailable::Zero);
                }
                let last = cpus.iter().map(|cpu| cpu.number).max().unwrap_or(0);
                let cpu = cpus.iter().find(|cpu| cpu.number == *number);
                let cpu = cpu.ok_or(Unavailable::Missing(*number, last))?;
                if cpu.online || cpu.spare {
                    Ok(*cpu)
                } else {
                    Err(Unavailable::Offline(*number))
                }
            })
            .collect(),
    }
}

/// Returns the CPUs below `root` (`/` outside of tests), by number, that the kernel lists as present.
///
/// # Errors
/// sysfs or the device tree cannot be read.
pub fn list(root: &Path) -> io::Result<Vec<Cpu>> {
    let directory = root.join("sys/devices/system/cpu");
    let idle = never_started(&fs::read_to_string(root.join("proc/softirqs")).unwrap_or_default());
    let mut cpus = Vec::new();
    for entry in fs::read_dir(&directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let number = name
            .to_str()
            .and_then(|name| name.strip_prefix("cpu")?.parse::<u32>().ok());
        let Some(number) = number else { continue };
        // CPU 0 has no `online` file where it cannot be taken offline.
        let online = match fs::read_to_string(entry.path().join("online")) {
            Ok(text) => text.trim() == "1",
            Err(error) if error.kind() == io::ErrorKind::NotFound => true,
            Err(error) => return Err(error),
        };
        let mpidr = mpidr(root, &entry.path(), number)?;
        cpus.push(Cpu {
            number,
            online,
            mpidr,
            spare: !online && idle.contains(&number),
        });
    }
    cpus.sort_by_key(|cpu| cpu.number);
    Ok(cpus)
}

/// Returns the CPUs that have handled no software interrupt since root's boot, from the text of
/// `/proc/softirqs`, which has a column for each possible CPU. One that was started has handled some before
/// it can be taken offline.
fn never_started(softirqs: &str) -> Vec<u32> {
    let mut lines = softirqs.lines();
    let columns: Vec<u32> = lines
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .filter_map(|name| name.strip_prefix("CPU")?.parse().ok())
        .collect();
    let rows: Vec<Vec<&str>> = lines
        .map(|line| line.split_whitespace().skip(1).collect())
        .collect();
    let idle = |column: usize| rows.iter().all(|row| row.get(column) == Some(&"0"));
    // A text without rows says nothing.
    let known = !rows.is_empty();
    (0..)
        .zip(columns)
        .filter(|(column, _)| known && idle(*column))
        .map(|(_, cpu)| cpu)
        .collect()
}

/// Returns the device tree's `reg` of a CPU: by its node if sysfs names it, else by its place among the
/// nodes.
fn mpidr(root: &Path, cpu: &Path, number: u32) -> io::Result<u64> {
    if let Ok(reg) = fs::read(cpu.join("of_node/reg")) {
        return cells(&reg);
    }
    let mut nodes = Vec::new();
    for entry in fs::read_dir(root.join("proc/device-tree/cpus"))?.flatten() {
        if entry.file_name().to_string_lossy().starts_with("cpu@") {
            nodes.push(cells(&fs::read(entry.path().join("reg"))?)?);
        }
    }
    nodes.sort_unstable();
    let index = usize::try_from(number).map_err(io::Error::other)?;
    nodes
        .get(index)
        .copied()
        .ok_or_else(|| io::Error::other(format!("no device-tree node for CPU {number}")))
}

/// One or two big-endian cells.
fn cells(reg: &[u8]) -> io::Result<u64> {
    if reg.len() != 4 && reg.len() != 8 {
        return Err(io::Error::other(format!(
            "a CPU's reg has {} bytes, expected 4 or 8",
            reg.len()
        )));
    }
    Ok(reg.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

/// Takes a CPU offline or brings it online.
///
/// # Errors
/// Linux refused.
pub fn set_online(root: &Path, cpu: u32, online: bool) -> io::Result<()> {
    let path = root.join(format!("sys/devices/system/cpu/cpu{cpu}/online"));
    expedited(root, || fs::write(path, if online { "1" } else { "0" }))
}

/// Does `work` with RCU grace periods expedited, as Linux has them itself when it suspends: they take most of
/// the time of turning a CPU off or on. They cost IPIs to the CPUs that are online, so the setting is
/// restored afterwards. Nothing is changed where an administrator has enabled it, or the kernel has no such
/// file.
fn expedited<T>(root: &Path, work: impl FnOnce() -> T) -> T {
    let path = root.join("sys/kernel/rcu_expedited");
    let ours =
        fs::read_to_string(&path).is_ok_and(|text| text.trim() == "0") && fs::write(&path, "1").is_ok();
    let result = work();
    if ours && let Err(error) = fs::write(&path, "0") {
        tracing::warn!(path = %path.display(), %error, "cannot be reset to 0");
    }
    result
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{Cpu, Unavailable, choose, expedited, list, never_started, set_online};
    use crate::config::Cpus;

    fn machine(online: &[bool]) -> Vec<Cpu> {
        let cpu = |(number, online): (usize, &bool)| Cpu {
            number: number as u32,
            online: *online,
            mpidr: number as u64,
            spare: false,
        };
        online.iter().enumerate().map(cpu).collect()
    }

    fn numbers(chosen: Result<Vec<Cpu>, Unavailable>) -> Result<Vec<u32>, Unavailable> {
        chosen.map(|cpus| cpus.iter().map(|cpu| cpu.number).collect())
    }

    #[test]
    fn a_count_takes_the_highest_online_cpus() {
        let four = machine(&[true; 4]);
        assert_eq!(numbers(choose(&four, &Cpus::Count(1))), Ok(vec![3]));
        assert_eq!(numbers(choose(&four, &Cpus::Count(2))), Ok(vec![2, 3]));
        assert_eq!(numbers(choose(&four, &Cpus::Count(3))), Ok(vec![1, 2, 3]));
        assert_eq!(
            choose(&four, &Cpus::Count(4)),
            Err(Unavailable::TooFew { available: 3 })
        );
        let busy = machine(&[true, true, true, false]);
        assert_eq!(numbers(choose(&busy, &Cpus::Count(1))), Ok(vec![2]));
        assert_eq!(
            choose(&machine(&[true]), &Cpus::Count(1)),
            Err(Unavailable::TooFew { available: 0 })
        );
    }

    #[test]
    fn a_list_is_taken_as_it_is() {
        let four = machine(&[true, true, true, false]);
        assert_eq!(numbers(choose(&four, &Cpus::List(vec![2, 1]))), Ok(vec![2, 1]));
        assert_eq!(choose(&four, &Cpus::List(vec![1, 0])), Err(Unavailable::Zero));
        assert_eq!(
            choose(&four, &Cpus::List(vec![4])),
            Err(Unavailable::Missing(4, 3))
        );
        assert_eq!(
            choose(&four, &Cpus::List(vec![2, 3])),
            Err(Unavailable::Offline(3))
        );
    }

    #[test]
    fn cpus_that_root_never_started_are_given_first() {
        let text = "                    CPU0       CPU1       CPU2       CPU3\n\
            HI:          1          0          0          0\n\
            TIMER:    1200         31          0          0\n";
        assert_eq!(never_started(text), [2, 3]);
        for text in ["", "   CPU0   CPU1\n", "CPU0 CPU1\nHI: 1\n"] {
            assert_eq!(never_started(text), [] as [u32; 0], "{text:?}");
        }
        let mut four = machine(&[true, true, false, false]);
        assert!(choose(&four, &Cpus::List(vec![2])).is_err());
        four[2].spare = true;
        assert_eq!(numbers(choose(&four, &Cpus::Count(1))), Ok(vec![2]));
        assert_eq!(numbers(choose(&four, &Cpus::Count(2))), Ok(vec![1, 2]));
        assert_eq!(numbers(choose(&four, &Cpus::List(vec![2]))), Ok(vec![2]));
        assert_eq!(choose(&four, &Cpus::List(vec![3])), Err(Unavailable::Offline(3)));
        assert_eq!(
            choose(&four, &Cpus::Count(3)),
            Err(Unavailable::TooFew { available: 2 })
        );
    }

    #[test]
    fn sysfs_is_read_and_written() {
        let root = tempfile::tempdir().unwrap();
        let base = root.path().join("sys/devices/system/cpu");
        for (number, reg) in [(0_u32, vec![0, 0, 0, 0]), (1, vec![0, 0, 0, 0, 0, 0, 1, 0])] {
            let node = base.join(format!("cpu{number}/of_node"));
            fs::create_dir_all(&node).unwrap();
            fs::write(node.join("reg"), reg).unwrap();
        }
        fs::create_dir_all(base.join("cpufreq")).unwrap();
        fs::write(base.join("cpu1/online"), "1\n").unwrap();
        let cpu = |number, online, mpidr| Cpu {
            number,
            online,
            mpidr,
            spare: false,
        };
        assert_eq!(list(root.path()).unwrap(), [cpu(0, true, 0), cpu(1, true, 0x100)]);
        set_online(root.path(), 1, false).unwrap();
        assert_eq!(list(root.path()).unwrap()[1], cpu(1, false, 0x100));
    }

    #[test]
    fn rcu_is_expedited_meanwhile() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("sys/kernel/rcu_expedited");
        let text = || fs::read_to_string(&file).unwrap();
        assert!(!expedited(root.path(), || file.exists()), "there is none");
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        for (before, after) in [("0\n", "0"), ("1\n", "1\n")] {
            fs::write(&file, before).unwrap();
            assert_eq!(expedited(root.path(), text).trim(), "1");
            assert_eq!(text(), after);
        }
    }

    #[test]
    fn without_of_node_the_device_tree_is_asked() {
        let root = tempfile::tempdir().unwrap();
        for number in 0..2 {
            fs::create_dir_all(root.path().join(format!("sys/devices/system/cpu/cpu{number}"))).unwrap();
        }
        for (name, reg) in [("cpu@0", [0, 0, 0, 0]), ("cpu@101", [0, 0, 1, 1])] {
            let node = root.path().join("proc/device-tree/cpus").join(name);
            fs::create_dir_all(&node).unwrap();
            fs::write(node.join("reg"), reg).unwrap();
        }
        let cpus = list(root.path()).unwrap();
        assert_eq!(cpus.iter().map(|cpu| cpu.mpidr).collect::<Vec<_>>(), [0, 0x101]);
    }
}
