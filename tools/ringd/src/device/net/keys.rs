//! Network devices in a zone file (`[[net]]`) and on the command line (`SOURCE[,KEY=VALUE...]`).

use toml::{Table, Value};

use super::config::{Forward, MTU, NetConfig, NetLimits, PortConfig, RATE, Source, parse_rate};
use crate::config::error::{bad, quoted};
use crate::config::keys::Keys;

const KEYS: &[&str] = &[
    "bridge",
    "tap",
    "user",
    "vhost_user",
    "forward",
    "filter",
    "addresses",
    "isolated",
    "mac",
    "mtu",
    "queue_pairs",
    "rate",
    "pps",
];
/// The origin of devices that options describe.
const COMMAND_LINE: &str = "command line";
/// What an option is to look like.
const OPTION: &str =
    "KEY=VALUE[,KEY=VALUE...] with bridge=NAME, tap=NAME, user or vhost_user=SOCKET, keys as in a zone file";

/// Takes the devices from a zone file's keys.
///
/// # Errors
/// A key of a device is wrong.
pub fn nets(keys: &mut Keys<'_>) -> anyhow::Result<Vec<NetConfig>> {
    keys.sections("net")?.into_iter().map(net).collect()
}

fn net(mut keys: Keys<'_>) -> anyhow::Result<NetConfig> {
    keys.refuse_unknown(KEYS)?;
    let port = port(&mut keys)?;
    let mac = keys.get(
        "mac",
        "a device's MAC address in quotes, such as \"52:54:00:12:34:56\"",
        |value| value.as_str()?.parse().ok(),
    )?;
    let rate = keys.get("rate", RATE, |value| parse_rate(value.as_str()?))?;
    let positive = |value: &Value| u64::try_from(value.as_integer()?).ok().filter(|pps| *pps > 0);
    Ok(NetConfig {
        port,
        mac,
        mtu: keys
            .count("mtu", "bytes of a packet, such as 1500")?
            .unwrap_or(MTU),
        queue_pairs: keys.count("queue_pairs", "a number of pairs of queues")?,
        limits: NetLimits {
            rate,
            pps: keys.get("pps", "packets per second, more than 0", positive)?,
        },
    })
}

/// Takes what is behind a device.
fn port(keys: &mut Keys<'_>) -> anyhow::Result<PortConfig> {
    let expected = "a list of addresses in quotes, such as [\"192.168.1.5\"]";
    Ok(PortConfig {
        source: source(keys)?,
        forward: forwards(keys)?.unwrap_or_default(),
        filter: keys.boolean("filter")?.unwrap_or(false),
        addresses: keys
            .get("addresses", expected, |value| {
                let list = value.as_array()?;
                list.iter().map(|one| one.as_str()?.parse().ok()).collect()
            })?
            .unwrap_or_default(),
        isolated: keys.boolean("isolated")?.unwrap_or(false),
    })
}

fn source(keys: &mut Keys<'_>) -> anyhow::Result<Source> {
    let expected = "one of bridge, tap, user and vhost_user";
    let given = ["bridge", "tap", "user", "vhost_user"].map(|key| (key, keys.peek(key).cloned()));
    let bridge = keys.string("bridge", "the name of a bridge in quotes")?;
    let tap = keys.string("tap", "the name of a tap device in quotes")?;
    let user = keys.boolean("user")?;
    let server = keys.path("vhost_user", "the path of a vhost-user server's socket")?;
    match (bridge, tap, user, server) {
        (Some(bridge), None, None, None) => Ok(Source::Bridge(bridge)),
        (None, Some(tap), None, None) => Ok(Source::Tap(tap)),
        (None, None, Some(true), None) => Ok(Source::User),
        (None, None, None, Some(server)) => Ok(Source::VhostUser(server)),
        (None, None, None, None) => Err(keys.missing("bridge", expected)),
        (None, None, Some(false), None) => Err(keys.bad(
            "user",
            &Value::Boolean(false),
            "true, or bridge, tap or vhost_user in its place",
        )),
        _ => {
            // The last of those that are given.
            let last = given
                .into_iter()
                .rev()
                .find_map(|(key, value)| Some((key, value?)));
            let (key, value) = last.unwrap_or(("bridge", Value::Boolean(true)));
            Err(keys.bad(key, &value, format_args!("only {expected}")))
        }
    }
}

fn forwards(keys: &mut Keys<'_>) -> anyhow::Result<Option<Vec<Forward>>> {
    keys.get("forward", &format!("a list of {}", Forward::EXPECTED), |value| {
        let list = value.as_array()?;
        list.iter().map(|one| one.as_str()?.parse().ok()).collect()
    })
}

/// Returns the devices that options describe.
///
/// # Errors
/// One of them describes no device.
pub fn from_options(options: &[String]) -> anyhow::Result<Vec<NetConfig>> {
    let nets: anyhow::Result<Vec<Value>> = options.iter().map(|text| table(text)).collect();
    let section = Table::from_iter([("net".to_owned(), Value::Array(nets?))]);
    self::nets(&mut Keys::new(COMMAND_LINE, section, std::path::Path::new("/")))
}

/// The keys of what is behind a device, which can be exchanged.
const PORT_KEYS: &[&str] = &[
    "bridge",
    "tap",
    "user",
    "forward",
    "filter",
    "addresses",
    "isolated",
];

/// Returns what `ringctl net attach` is to put behind a device: KEY=VALUE[,KEY=VALUE...].
///
/// # Errors
/// It describes nothing that can be behind a device.
pub fn port_from_option(text: &str) -> anyhow::Result<PortConfig> {
    let Value::Table(table) = table(text)? else {
        return Err(bad(COMMAND_LINE, "net", quoted(text), OPTION));
    };
    let mut keys = Keys::new(COMMAND_LINE, table, std::path::Path::new("/"));
    keys.refuse_unknown(PORT_KEYS)?;
    let port = port(&mut keys)?;
    match port.check() {
        Ok(()) => Ok(port),
        Err((key, value, expected)) => Err(bad(COMMAND_LINE, key, value, expected)),
    }
}

/// Returns an option as the table that a zone file would hold. `user`, `filter` and `isolated` alone mean
/// true; `forward` and `addresses` may be given more than once.
fn table(text: &str) -> anyhow::Result<Value> {
    let mut table = Table::new();
    for part in text.split(',') {
        let (key, value) = match part.split_once('=') {
            None if ["user", "filter", "isolated"].contains(&part) => (part, "true"),
            Some(pair) => pair,
            None => return Err(bad(COMMAND_LINE, "net", quoted(text), OPTION)),
        };
        let value = match key {
            "user" | "filter" | "isolated" => value
                .parse()
                .map_or_else(|_| Value::String(value.into()), Value::Boolean),
            "mtu" | "queue_pairs" | "pps" => value
                .parse()
                .map_or_else(|_| Value::String(value.into()), Value::Integer),
            "forward" | "addresses" => {
                let mut list = match table.remove(key) {
                    Some(Value::Array(list)) => list,
                    _ => Vec::new(),
                };
                list.push(Value::String(value.into()));
                Value::Array(list)
            }
            _ => Value::String(value.into()),
        };
        table.insert(key.into(), value);
    }
    Ok(Value::Table(table))
}
