//! `ringctl disk ...`.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::bail;
use clap::{Args, Subcommand};

use super::{OutputOptions, confused, print, zone_options};
use crate::config::size::{format_size, parse_size};
use crate::config::{DiskConfig, quoted};
use crate::control::client::ClientError;
use crate::control::protocol::{Reply, Request};
use crate::zone::disks::LimitChange;
use crate::zone::moves::Stage;

/// How often a move is looked at.
const GLANCE: Duration = Duration::from_millis(200);
/// How long the daemon may be away meanwhile.
const PATIENCE: Duration = Duration::from_secs(60);

/// What can be done with disks.
#[derive(Subcommand, Debug)]
pub enum DiskCommand {
    /// Lists the disks of the zones that run, and their drives without a medium.
    List(OutputOptions),
    /// Shows the counters of the disks by queue; more of them with --json, times there in nanoseconds.
    Stats(OutputOptions),
    /// Puts a disk into a drive without a medium: the guest sees that drive's capacity change.
    ///
    /// A zone has as many such drives as `spare_disks` in its zone file says, after its disks. Partitions are found
    /// once the guest looks for them (`blockdev --rereadpt /dev/vdX`).
    Attach {
        /// The zone's name.
        zone: String,
        /// PATH[,KEY=VALUE...], keys as in a zone file.
        disk: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Takes a disk out of its drive, mounted or not: requests in flight end, later ones fail.
    Detach(Which),
    /// Makes a disk larger; without SIZE, takes over the size that its file or device has now.
    Resize {
        /// Which disk.
        #[command(flatten)]
        which: Which,
        /// New size, such as 20G.
        #[arg(value_parser = size)]
        size: Option<u64>,
        /// Also to less than it has; what lies behind is lost.
        #[arg(long)]
        shrink: bool,
    },
    /// Changes how fast a disk may be. What is not given stays as it is.
    SetLimit {
        /// Which disk.
        #[command(flatten)]
        which: Which,
        /// What changes.
        #[command(flatten)]
        limits: Limits,
    },
    /// Tries again what a disk with `on_error = "stop"` has stopped at.
    ///
    /// A block device that has stopped is closed (state `released` in `disk list`), so that it can be connected again, and
    /// opened anew by this.
    Resume(Which),
    /// Moves a disk to another image or server while its guest uses it, compares the two, and returns when the guest uses
    /// the target.
    ///
    /// The target must be there, at least as large as the disk, and is overwritten: `truncate -s SIZE FILE` or `qemu-img
    /// create` make one. Until the switch the disk is where it was, whatever happens to the target. A daemon that dies is
    /// followed by one that goes on.
    Migrate {
        /// Which disk.
        #[command(flatten)]
        which: Which,
        /// PATH[,format=...][,engine=...][,cache=...], or vhost-user:SOCKET.
        #[arg(required_unless_present = "cancel")]
        target: Option<String>,
        /// Return when it has begun; `disk list` shows how far it is.
        #[arg(long)]
        no_wait: bool,
        /// End a move that is under way: the disk stays where it is.
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

/// New limits.
#[derive(Args, Debug)]
#[group(required = true, multiple = true)]
pub struct Limits {
    /// Requests a second, or "none".
    #[arg(long, value_parser = count)]
    pub iops: Option<u64>,
    /// Requests at once after a rest; if not given, a tenth of a new rate.
    #[arg(long, value_name = "COUNT")]
    pub iops_burst: Option<u64>,
    /// Bytes a second such as 50M, or "none".
    #[arg(long, value_parser = limit_size)]
    pub bps: Option<u64>,
    /// Bytes at once after a rest; if not given, a tenth of a new rate.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub bps_burst: Option<u64>,
}

/// `1`, or `vdb`.
fn slot(text: &str) -> Result<u8, String> {
    let letter = |letter: u8| letter.is_ascii_lowercase().then(|| letter - b'a');
    let slot = match text.strip_prefix("vd").map(str::as_bytes) {
        Some(&[only]) => letter(only),
        // Behind vdz comes vdaa.
        Some(&[first, second]) => letter(first).zip(letter(second)).and_then(|(first, second)| {
            let slot = (u16::from(first) + 1) * 26 + u16::from(second);
            u8::try_from(slot).ok()
        }),
        _ => text.parse().ok(),
    };
    slot.ok_or_else(|| "expected a slot number, or a guest's name such as vdb".into())
}

fn size(text: &str) -> Result<u64, String> {
    parse_size(text).ok_or_else(|| "expected a size such as 512M or 20G".into())
}

fn limit_size(text: &str) -> Result<u64, String> {
    if text == "none" {
        return Ok(0);
    }
    let bytes = parse_size(text).filter(|bytes| *bytes != 0);
    bytes.ok_or_else(|| "expected a size such as 50M, or \"none\"".into())
}

fn count(text: &str) -> Result<u64, String> {
    if text == "none" {
        return Ok(0);
    }
    let count = text.parse().ok().filter(|count| *count != 0);
    count.ok_or_else(|| "expected a number, or \"none\"".into())
}

/// Does it; `ask` asks the daemon.
///
/// # Errors
/// Why it cannot be done, for people.
pub fn run(
    command: DiskCommand,
    ask: impl Fn(Request) -> Result<Reply, ClientError>,
) -> anyhow::Result<ExitCode> {
    let change = |request: Request| -> anyhow::Result<ExitCode> {
        ask(request)?;
        Ok(ExitCode::SUCCESS)
    };
    match command {
        DiskCommand::List(output) => match ask(Request::Disks)? {
            Reply::Disks(disks) if output.json => print::json(&disks),
            Reply::Disks(disks) => print::disks(&disks),
            other => confused(&other),
        },
        DiskCommand::Stats(output) => match ask(Request::Disks)? {
            Reply::Disks(disks) if output.json => print::json(&disks),
            Reply::Disks(disks) => print::disk_stats(&disks),
            other => confused(&other),
        },
        DiskCommand::Attach { zone, disk, json } => {
            let disk = Box::new(zone_options::one_disk(&disk)?);
            match ask(Request::DiskAttach { name: zone, disk })? {
                Reply::Disk(disk) if json => print::json(&disk),
                Reply::Disk(disk) => print::disks(&[*disk]),
                other => confused(&other),
            }
        }
        DiskCommand::Detach(Which {
            zone: name,
            disk: slot,
        }) => change(Request::DiskDetach { name, slot }),
        DiskCommand::Resize {
            which: Which {
                zone: name,
                disk: slot,
            },
            size,
            shrink,
        } => change(Request::DiskResize {
            name,
            slot,
            size,
            shrink,
        }),
        DiskCommand::SetLimit {
            which: Which {
                zone: name,
                disk: slot,
            },
            limits,
        } => {
            let change_to = LimitChange {
                iops: limits.iops,
                iops_burst: limits.iops_burst,
                bps: limits.bps,
                bps_burst: limits.bps_burst,
            };
            change(Request::DiskLimit {
                name,
                slot,
                change: change_to,
            })
        }
        DiskCommand::Resume(Which {
            zone: name,
            disk: slot,
        }) => change(Request::DiskResume { name, slot }),
        DiskCommand::Migrate {
            which: Which {
                zone: name,
                disk: slot,
            },
            target,
            no_wait,
            ..
        } => {
            let Some(target) = target else {
                return change(Request::DiskMigrateEnd { name, slot });
            };
            let target = Box::new(zone_options::one_disk(&target)?);
            let path = target.path.clone();
            ask(Request::DiskMigrate {
                name: name.clone(),
                slot,
                target,
            })?;
            if no_wait {
                return Ok(ExitCode::SUCCESS);
            }
            await_move(&name, slot, &path, ask)
        }
    }
}

/// Waits for a move to end, also over the death of the daemon.
fn await_move(
    name: &str,
    slot: u8,
    target: &Path,
    ask: impl Fn(Request) -> Result<Reply, ClientError>,
) -> anyhow::Result<ExitCode> {
    let mut last_answer = Instant::now();
    let mut said = None;
    loop {
        std::thread::sleep(GLANCE);
        let disks = match ask(Request::Disks) {
            Ok(Reply::Disks(disks)) => disks,
            Ok(other) => return confused(&other),
            Err(error) if last_answer.elapsed() > PATIENCE => return Err(error.into()),
            Err(_) => continue,
        };
        last_answer = Instant::now();
        let Some(report) = disks
            .into_iter()
            .find(|report| report.zone == name && report.slot == slot)
        else {
            bail!("zone {name} has ended before the disk in slot {slot} was moved");
        };
        if let Some(moving) = report.moving {
            let tenths = (
                moving.stage.clone(),
                moving.copied.saturating_mul(10) / moving.size.max(1),
            );
            if said.as_ref() != Some(&tenths) && moving.size > 0 {
                eprintln!(
                    "{}: {} of {}",
                    match moving.stage {
                        Stage::Copying => "copying",
                        Stage::Comparing => "comparing",
                        Stage::Ready => "switching",
                        Stage::Failed(_) => "giving up",
                    },
                    format_size(moving.copied),
                    format_size(moving.size)
                );
                said = Some(tenths);
            }
            continue;
        }
        if let Some(disk) = report.disk.filter(|disk| disk.is(target)) {
            println!("zone {name}, disk in slot {slot}: moved to {}", target.display());
            // The daemon has it on record, for as long as the zone lives.
            println!("{}", reminder(&disk));
            return Ok(ExitCode::SUCCESS);
        }
        let reason = report.move_failure.unwrap_or_else(|| "nobody knows why".into());
        bail!("zone {name}, disk in slot {slot}: stays where it is: {reason}");
    }
}

/// What is left to be done after a move: the next start of the zone is by its file.
fn reminder(disk: &DiskConfig) -> String {
    let (key, place) = disk.source();
    format!(
        "the zone file still says where the disk was: change it to {key} = {}, with the format and cache of the target",
        quoted(&place.display().to_string())
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::path::PathBuf;

    use crate::control::protocol::DiskReport;
    use crate::zone::moves::MoveReport;

    fn report(path: &str, moving: Option<u64>) -> Result<Reply, ClientError> {
        Ok(Reply::Disks(vec![DiskReport {
            zone: "a".into(),
            slot: 0,
            disk: Some(DiskConfig::new(path.into())),
            size: 4096,
            released: false,
            queues: Vec::new(),
            moving: moving.map(|size| MoveReport {
                target: "/target".into(),
                copied: 0,
                size,
                stage: Stage::Copying,
            }),
            move_failure: None,
        }]))
    }

    /// Over a daemon that dies, is not there, and takes its time to take the zone over.
    #[test]
    fn a_move_is_waited_for_over_a_take_over() {
        let gone = || Err(ClientError::NotRunning(PathBuf::from("/sock")));
        let answers = RefCell::new(vec![
            report("/target", None),
            report("/source", Some(4096)),
            report("/source", Some(0)),
            gone(),
            report("/source", Some(4096)),
        ]);
        let ask = |_| answers.borrow_mut().pop().unwrap();
        let done = await_move("a", 0, Path::new("/target"), ask).unwrap();
        assert_eq!(done, ExitCode::SUCCESS);
        let stays = await_move("a", 0, Path::new("/target"), |_| report("/source", None));
        assert!(stays.unwrap_err().to_string().contains("stays where it is"));
    }

    #[test]
    fn what_the_zone_file_has_to_say_is_said() {
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

    #[test]
    fn limits_are_numbers_or_none() {
        assert_eq!((count("none"), count("500")), (Ok(0), Ok(500)));
        assert!(count("0").is_err() && count("many").is_err());
        assert_eq!((limit_size("none"), limit_size("2M")), (Ok(0), Ok(2 << 20)));
        assert!(limit_size("0").is_err() && limit_size("2X").is_err());
    }
}
