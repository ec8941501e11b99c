//! `ringctl disk ...`.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::{OutputOptions, confused, print, zone_options};
use crate::config::size::parse_size;
use crate::control::client::ClientError;
use crate::control::protocol::{Reply, Request};
use crate::zone::disks::LimitChange;

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
    Resume(Which),
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
                Reply::Disk(disk) => print::disks(&[disk]),
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
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
