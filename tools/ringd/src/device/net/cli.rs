//! `ringctl net ...`.

use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};

use super::change::Change;
use super::config::{NetLimits, PortConfig, RATE, parse_rate};
use super::keys::port_from_option;
use super::report::NetReport;
use crate::cli::print::{OutputOptions, json, table};
use crate::control::client::ClientError;
use crate::control::protocol;
use crate::device;
use crate::device::api::{ChangeRequest, Reply, Request};

/// Commands for network devices.
#[derive(Subcommand, Debug)]
pub enum NetCommand {
    /// Lists the network devices of the zones that run.
    List(OutputOptions),
    /// Shows packets, bytes and drops of the network devices; more of them with --json, by queue.
    Stats(OutputOptions),
    /// Takes a device's link up or down: the guest sees its carrier change.
    SetLink {
        /// Which device.
        #[command(flatten)]
        which: Which,
        /// What it becomes.
        #[arg(value_enum)]
        link: Link,
    },
    /// Puts another bridge, tap or passt behind a device that was detached: its link comes up.
    Attach {
        /// Which device.
        #[command(flatten)]
        which: Which,
        /// KEY=VALUE[,KEY=VALUE...], keys as in a zone file: bridge=NAME, tap=NAME or user, with forward,
        /// filter, addresses, isolated.
        #[arg(value_parser = port)]
        port: PortConfig,
    },
    /// Removes what is behind a device: its link goes down.
    Detach(Which),
    /// Sets a device's limits, each of both directions; what is not given has no limit afterwards.
    SetLimit {
        /// Which device.
        #[command(flatten)]
        which: Which,
        /// Bits per second, such as 100Mbit.
        #[arg(long, value_name = "RATE", value_parser = rate)]
        rate: Option<u64>,
        /// Packets per second.
        #[arg(long, value_name = "PACKETS", value_parser = clap::value_parser!(u64).range(1..))]
        pps: Option<u64>,
    },
}

/// Which device of which zone.
#[derive(Args, Debug)]
pub struct Which {
    /// The zone's name.
    pub zone: String,
    /// The device's number among the zone's network devices, or its name in a Linux guest: 0 or eth0.
    #[arg(value_parser = index)]
    pub net: usize,
}

/// A link's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Link {
    /// Up.
    Up,
    /// Down.
    Down,
}

fn index(text: &str) -> Result<usize, String> {
    let number = text.strip_prefix("eth").unwrap_or(text).parse();
    number.map_err(|_| "expected a number, or a guest's name such as eth0".into())
}

fn port(text: &str) -> Result<PortConfig, String> {
    port_from_option(text).map_err(|error| error.to_string())
}

fn rate(text: &str) -> Result<u64, String> {
    parse_rate(text).ok_or_else(|| format!("expected {RATE}"))
}

/// Executes a command; `request` sends a request to the daemon.
///
/// # Errors
/// Why it failed, for people.
pub fn run(
    command: NetCommand,
    request: impl Fn(protocol::Request) -> Result<protocol::Reply, ClientError>,
) -> anyhow::Result<ExitCode> {
    let list = || match request(protocol::Request::Device(Request::Nets {}))? {
        protocol::Reply::Device(Reply::Nets(nets)) => Ok(nets),
        other => Err(ClientError::unexpected(&other)),
    };
    let change = |name: String, change: Change| -> anyhow::Result<ExitCode> {
        let change = device::Change::Net(change);
        request(protocol::Request::Device(Request::Change(ChangeRequest {
            name,
            change,
        })))?;
        Ok(ExitCode::SUCCESS)
    };
    match command {
        NetCommand::List(output) | NetCommand::Stats(output) if output.json => json(&list()?),
        NetCommand::List(_) => devices(&list()?),
        NetCommand::Stats(_) => stats(&list()?),
        NetCommand::SetLink { which, link } => {
            let (index, up) = (which.net, link == Link::Up);
            change(which.zone, Change::Link { index, up })
        }
        NetCommand::Attach { which, port } => {
            let index = which.net;
            change(which.zone, Change::Attach { index, port })
        }
        NetCommand::Detach(Which { zone, net }) => change(zone, Change::Detach { index: net }),
        NetCommand::SetLimit { which, rate, pps } => {
            let (index, limits) = (which.net, NetLimits { rate, pps });
            change(which.zone, Change::Limit { index, limits })
        }
    }
}

fn devices(nets: &[NetReport]) -> anyhow::Result<ExitCode> {
    let limit = |limit: Option<u64>| limit.map_or_else(|| "-".into(), |limit| limit.to_string());
    let rows: Vec<Vec<String>> = nets
        .iter()
        .map(|net| {
            vec![
                net.zone.clone(),
                format!("eth{}", net.index),
                net.slot.to_string(),
                net.mac.to_string(),
                net.net.mtu.to_string(),
                (net.queues.iter().filter(|queue| queue.active).count() / 2).to_string(),
                if net.link { "up" } else { "down" }.into(),
                limit(net.limits.rate),
                limit(net.limits.pps),
                net.port
                    .as_ref()
                    .map_or_else(|| "-".into(), |port| port.source.to_string()),
            ]
        })
        .collect();
    let heading = [
        "ZONE", "NET", "SLOT", "MAC", "MTU", "PAIRS", "LINK", "BIT/S", "PPS", "SOURCE",
    ];
    table(&heading, &rows)
}

fn stats(nets: &[NetReport]) -> anyhow::Result<ExitCode> {
    let rows: Vec<Vec<String>> = nets
        .iter()
        .flat_map(|net| [(net, true), (net, false)])
        .map(|(net, receive)| {
            let dropped: Vec<_> = net.dropped(receive).filter(|(_, count)| *count > 0).collect();
            let reasons: Vec<String> = dropped
                .iter()
                .map(|(reason, count)| format!("{reason}={count}"))
                .collect();
            vec![
                net.zone.clone(),
                format!("eth{}", net.index),
                if receive { "receive" } else { "transmit" }.into(),
                net.sum(receive, "packets").to_string(),
                net.sum(receive, "bytes").to_string(),
                dropped.iter().map(|(_, count)| count).sum::<u64>().to_string(),
                net.sum(receive, "throttled").to_string(),
                net.sum(receive, "interrupts").to_string(),
                if reasons.is_empty() {
                    "-".into()
                } else {
                    reasons.join(",")
                },
            ]
        })
        .collect();
    let heading = [
        "ZONE",
        "NET",
        "WAY",
        "PACKETS",
        "BYTES",
        "DROPPED",
        "THROTTLED",
        "IRQS",
        "REASONS",
    ];
    table(&heading, &rows)
}
