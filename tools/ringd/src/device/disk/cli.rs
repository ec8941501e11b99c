//! `ringctl disk ...`.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::bail;
use clap::{Args, Subcommand};

use super::change::{Change, LimitChange, size};
use super::config::DiskConfig;
use super::migration::Stage;
use super::report::DiskReport;
use super::{keys, print};
use crate::cli::print::{OutputOptions, json};
use crate::config::quoted;
use crate::config::size::format_size;
use crate::control::client::ClientError;
use crate::control::protocol;
use crate::device;
use crate::device::api::{ChangeRequest, Reply, Request};

/// How often the progress of a migration is read.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// How long the daemon may be away meanwhile.
const AWAY_TIMEOUT: Duration = Duration::from_secs(60);

/// Commands for disks.
#[derive(Subcommand, Debug)]
pub enum DiskCommand {
    /// Lists the disks of the zones that run, and their drives without a medium.
    List(OutputOptions),
    /// Shows the counters of the disks by queue; more of them with --json, times there in nanoseconds.
    Stats(OutputOptions),
    /// Attaches a disk to a drive without a medium: the guest sees that drive's capacity change.
    ///
    /// A zone has as many such drives as `spare_disks` in its zone file says, after its disks. The guest
    /// finds partitions once it reads the partition table (`blockdev --rereadpt /dev/vdX`).
    Attach {
        /// The zone's name.
        zone: String,
        /// PATH[,KEY=VALUE...], keys as in a zone file.
        disk: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Detaches a disk from its drive, mounted or not: requests in flight complete, later ones fail.
    Detach(Which),
    /// Makes a disk larger; without SIZE, reads the size that its file or device has now.
    Resize {
        /// Which disk.
        #[command(flatten)]
        which: Which,
        /// New size, such as 20G.
        #[arg(value_parser = size)]
        size: Option<u64>,
        /// Allow a smaller size; what lies behind it is lost.
        #[arg(long)]
        shrink: bool,
    },
    /// Changes a disk's rate limits. What is not given stays as it is.
    SetLimit {
        /// Which disk.
        #[command(flatten)]
        which: Which,
        /// What changes.
        #[command(flatten)]
        change: LimitChange,
    },
    /// Retries the requests at which a disk with `on_error = "stop"` has stopped.
    ///
    /// A block device that has stopped is closed (state `released` in `disk list`), so that it can be
    /// connected again; this command opens it.
    Resume(Which),
    /// Migrates a disk to another image or server while its guest uses it, compares the two, and returns when
    /// the guest uses the target.
    ///
    /// The target must exist and be at least as large as the disk, and is overwritten: `truncate -s SIZE
    /// FILE` or `qemu-img create` make one. Until the switch the disk is where it was, whatever happens to
    /// the target. If the daemon dies, the next one continues.
    Migrate {
        /// Which disk.
        #[command(flatten)]
        which: Which,
        /// `PATH[,format=...][,engine=...][,cache=...]`, or `vhost-user:SOCKET`.
        #[arg(required_unless_present = "cancel")]
        target: Option<String>,
        /// Return when it has begun; `disk list --json` shows its progress.
        #[arg(long)]
        no_wait: bool,
        /// Cancel a migration: the disk stays where it is.
        #[arg(long, conflicts_with_all = ["target", "no_wait"])]
        cancel: bool,
    },
}

/// Which disk of which zone.
#[derive(Args, Debug)]
pub struct Which {
    /// The zone's name.
    pub zone: String,
    /// The disk's slot, or its name in a Linux guest: 1 or vdb.
    #[arg(value_parser = slot)]
    pub disk: u8,
}

/// Parses a slot: `1`, or `vdb`.
fn slot(text: &str) -> Result<u8, String> {
    let letter = |letter: u8| letter.is_ascii_lowercase().then(|| letter - b'a');
    let slot = match text.strip_prefix("vd").map(str::as_bytes) {
        Some(&[only]) => letter(only),
        // vdaa follows vdz.
        Some(&[first, second]) => letter(first).zip(letter(second)).and_then(|(first, second)| {
            let slot = (u16::from(first) + 1) * 26 + u16::from(second);
            u8::try_from(slot).ok()
        }),
        _ => text.parse().ok(),
    };
    slot.ok_or_else(|| "expected a slot number, or a guest's name such as vdb".into())
}

/// Executes a command; `request` sends a request to the daemon.
///
/// # Errors
/// Why it failed, for people.
pub fn run(
    command: DiskCommand,
    request: impl Fn(protocol::Request) -> Result<protocol::Reply, ClientError>,
) -> anyhow::Result<ExitCode> {
    let ask = |wanted| request(protocol::Request::Device(wanted));
    let list = || disks(ask(Request::Disks {})?);
    let ask_to = |name: String, change: Change| {
        let change = device::Change::Disk(change);
        ask(Request::Change(ChangeRequest { name, change }))
    };
    let change = |which: Which, change: &dyn Fn(u8) -> Change| -> anyhow::Result<ExitCode> {
        ask_to(which.zone, change(which.disk))?;
        Ok(ExitCode::SUCCESS)
    };
    match command {
        DiskCommand::List(output) | DiskCommand::Stats(output) if output.json => json(&list()?),
        DiskCommand::List(_) => print::disks(&list()?),
        DiskCommand::Stats(_) => print::disk_stats(&list()?),
        DiskCommand::Attach {
            zone,
            disk,
            json: as_json,
        } => {
            let disk = Box::new(keys::from_argument(&disk)?);
            match ask_to(zone, Change::Attach { disk })? {
                protocol::Reply::Device(Reply::Disk(disk)) if as_json => json(&disk),
                protocol::Reply::Device(Reply::Disk(disk)) => print::disks(&[*disk]),
                other => Err(ClientError::unexpected(&other).into()),
            }
        }
        DiskCommand::Detach(which) => change(which, &|slot| Change::Detach { slot }),
        DiskCommand::Resize { which, size, shrink } => {
            change(which, &|slot| Change::Resize { slot, size, shrink })
        }
        DiskCommand::SetLimit {
            which,
            change: limits,
        } => change(which, &|slot| Change::Limit { slot, change: limits }),
        DiskCommand::Resume(which) => change(which, &|slot| Change::Resume { slot }),
        DiskCommand::Migrate {
            which,
            target,
            no_wait,
            ..
        } => {
            let Some(target) = target else {
                return change(which, &|slot| Change::CancelMigration { slot });
            };
            let target = Box::new(keys::from_argument(&target)?);
            let (path, slot) = (target.path.clone(), which.disk);
            ask_to(which.zone.clone(), Change::Migrate { slot, target })?;
            if no_wait {
                return Ok(ExitCode::SUCCESS);
            }
            await_migration(&which.zone, slot, &path, list)
        }
    }
}

/// Returns the disks of a reply.
fn disks(reply: protocol::Reply) -> Result<Vec<DiskReport>, ClientError> {
    match reply {
        protocol::Reply::Device(Reply::Disks(disks)) => Ok(disks),
        other => Err(ClientError::unexpected(&other)),
    }
}

/// Waits for the end of a migration, across the death of the daemon as well. `list` asks for all disks.
fn await_migration(
    name: &str,
    slot: u8,
    target: &Path,
    list: impl Fn() -> Result<Vec<DiskReport>, ClientError>,
) -> anyhow::Result<ExitCode> {
    let mut last_answer = Instant::now();
    let mut said = None;
    loop {
        std::thread::sleep(POLL_INTERVAL);
        let disks = match list() {
            Ok(disks) => disks,
            Err(error @ ClientError::Confused(_)) => return Err(error.into()),
            Err(error) if last_answer.elapsed() > AWAY_TIMEOUT => return Err(error.into()),
            Err(_) => continue,
        };
        last_answer = Instant::now();
        let Some(report) = disks
            .into_iter()
            .find(|report| report.zone == name && report.slot == slot)
        else {
            bail!("zone {name} has ended before the disk in slot {slot} was migrated");
        };
        if let Some(migration) = report.migration {
            let tenths = (
                migration.stage.clone(),
                migration.copied.saturating_mul(10) / migration.size.max(1),
            );
            if said.as_ref() != Some(&tenths) && migration.size > 0 {
                eprintln!(
                    "{}: {} of {}",
                    match migration.stage {
                        Stage::Copying => "copying",
                        Stage::Comparing => "comparing",
                        Stage::Ready => "switching",
                        Stage::Failed(_) => "giving up",
                    },
                    format_size(migration.copied),
                    format_size(migration.size)
                );
                said = Some(tenths);
            }
            continue;
        }
        if let Some(disk) = report.disk.filter(|disk| disk.is(target)) {
            println!(
                "zone {name}, disk in slot {slot}: migrated to {}",
                target.display()
            );
            // The daemon has it on record only until the zone ends.
            println!("{}", reminder(&disk));
            return Ok(ExitCode::SUCCESS);
        }
        let reason = report
            .migration_failure
            .unwrap_or_else(|| "for an unknown reason".into());
        bail!("zone {name}, disk in slot {slot}: stays where it is: {reason}");
    }
}

/// Returns what the user has to do after a migration: the next start of the zone reads its file.
fn reminder(disk: &DiskConfig) -> String {
    let (key, place) = disk.source();
    format!(
        "the zone file still says where the disk was: change it to {key} = {}, with the format and cache of the target",
        quoted(&place.display().to_string())
    )
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::path::{Path, PathBuf};
    use std::process::ExitCode;

    use super::{await_migration, reminder, slot};
    use crate::control::client::ClientError;
    use crate::device::disk::config::DiskConfig;
    use crate::device::disk::migration::{MigrationReport, Stage};
    use crate::device::disk::report::DiskReport;

    fn report(path: &str, migrating: Option<u64>) -> Result<Vec<DiskReport>, ClientError> {
        Ok(vec![DiskReport {
            zone: "a".into(),
            slot: 0,
            disk: Some(DiskConfig::new(path.into())),
            size: 4096,
            closed: false,
            queues: Vec::new(),
            migration: migrating.map(|size| MigrationReport {
                target: "/target".into(),
                copied: 0,
                size,
                stage: Stage::Copying,
            }),
            migration_failure: None,
        }])
    }

    /// Across the death of the daemon, its absence, and a slow take-over of the zone.
    #[test]
    fn a_migration_is_awaited_across_a_take_over() {
        let gone = || Err(ClientError::NotRunning(PathBuf::from("/sock")));
        let answers = RefCell::new(vec![
            report("/target", None),
            report("/source", Some(4096)),
            report("/source", Some(0)),
            gone(),
            report("/source", Some(4096)),
        ]);
        let list = || answers.borrow_mut().pop().unwrap();
        let done = await_migration("a", 0, Path::new("/target"), list).unwrap();
        assert_eq!(done, ExitCode::SUCCESS);
        let stays = await_migration("a", 0, Path::new("/target"), || report("/source", None));
        assert!(stays.unwrap_err().to_string().contains("stays where it is"));
    }

    #[test]
    fn the_reminder_names_the_zone_files_key() {
        let said = |path: &str| reminder(&DiskConfig::new(path.into()));
        assert!(said("/srv/new.img").contains("path = \"/srv/new.img\""));
        assert!(said("vhost-user:/run/sock").contains("vhost_user = \"/run/sock\""));
    }

    #[test]
    fn a_disk_is_named_by_its_slot_or_as_in_the_guest() {
        for (text, expected) in [
            ("0", Some(0)),
            ("31", Some(31)),
            ("vda", Some(0)),
            ("vdz", Some(25)),
            ("vdaa", Some(26)),
            ("vdaf", Some(31)),
            ("vd", None),
            ("vdA", None),
            ("vdzzz", None),
            ("vdzz", None),
            ("sda", None),
            ("-1", None),
            ("", None),
        ] {
            assert_eq!(slot(text).ok(), expected, "{text}");
        }
    }
}
