//! [`Boot`]: whether and when a zone starts with the machine, and the order of all that do.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::keys::Keys;
use super::zone::is_zone_name;

/// Longest delay.
const MAX_DELAY: Duration = Duration::from_secs(3600);

/// The section `[boot]` of a zone file. It is `ringctl`'s alone: the daemon starts what it is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Boot {
    /// Whether the zone starts with the machine.
    pub start: bool,
    /// Zones that start before it, if they start with the machine.
    pub after: Vec<String>,
    /// Time to wait before its start, once those have started.
    pub delay: Duration,
}

impl Boot {
    const KEYS: &[&str] = &["start", "after", "delay"];

    /// Takes the section from a zone file's keys.
    ///
    /// # Errors
    /// A key of it is wrong.
    pub fn from_keys(keys: &mut Keys<'_>) -> anyhow::Result<Self> {
        let Some(mut keys) = keys.section("boot")? else {
            return Ok(Self::default());
        };
        keys.refuse_unknown(Self::KEYS)?;
        let after = keys.get(
            "after",
            "a list of zones' names such as [\"one\", \"two\"]",
            |value| {
                let name = |value: &toml::Value| {
                    let name = value.as_str().filter(|name| is_zone_name(name));
                    name.map(str::to_owned)
                };
                value.as_array()?.iter().map(name).collect::<Option<_>>()
            },
        )?;
        let delay = keys.get(
            "delay",
            "a time of at most an hour such as \"5s\" or \"500ms\"",
            |value| parse_delay(value.as_str()?).filter(|delay| *delay <= MAX_DELAY),
        )?;
        Ok(Self {
            start: keys.boolean("start")?.unwrap_or(false),
            after: after.unwrap_or_default(),
            delay: delay.unwrap_or_default(),
        })
    }
}

fn parse_delay(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at_checked(digits)?;
    let number = number.parse().ok()?;
    match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "min" => Some(Duration::from_secs(number.checked_mul(60)?)),
        _ => None,
    }
}

/// The order in which zones start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Order {
    /// Groups, one after the other; zones of a group do not depend on each other.
    pub groups: Vec<Vec<String>>,
    /// Zones that would start after themselves, or after such zones.
    pub circle: Vec<String>,
}

/// Orders zones by what they start after. Names that are not among the zones have no effect.
pub fn order(zones: &BTreeMap<String, Boot>) -> Order {
    let mut order = Order::default();
    let mut left: BTreeSet<&String> = zones.keys().collect();
    while !left.is_empty() {
        let waits = |name: &&&String| {
            let boot = zones.get(**name);
            boot.is_some_and(|boot| boot.after.iter().any(|other| left.contains(other)))
        };
        let group: Vec<String> = left
            .iter()
            .filter(|name| !waits(name))
            .map(|name| (*name).clone())
            .collect();
        if group.is_empty() {
            order.circle = left.into_iter().cloned().collect();
            break;
        }
        left.retain(|name| !group.contains(name));
        order.groups.push(group);
    }
    order
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;
    use std::time::Duration;

    use proptest::prelude::*;
    use toml::Table;

    use super::{Boot, order, parse_delay};
    use crate::config::keys::Keys;

    fn boot(text: &str) -> anyhow::Result<Boot> {
        let table: Table = text.parse().unwrap();
        Boot::from_keys(&mut Keys::new("z.toml", table, Path::new("/")))
    }

    #[test]
    fn a_section_is_read_and_its_mistakes_are_named() {
        assert_eq!(boot("").unwrap(), Boot::default());
        let expected = Boot {
            start: true,
            after: vec!["other".into(), "b".into()],
            delay: Duration::from_millis(1500),
        };
        let text = "[boot]\nstart = true\nafter = [\"other\", \"b\"]\ndelay = \"1500ms\"";
        assert_eq!(boot(text).unwrap(), expected);
        for (line, message) in [
            ("start = 1", "z.toml: boot.start = 1: expected true or false"),
            (
                "after = \"a\"",
                "z.toml: boot.after = \"a\": expected a list of zones' names",
            ),
            (
                "after = [\"a b\"]",
                "z.toml: boot.after = [\"a b\"]: expected a list of zones' names",
            ),
            (
                "delay = 5",
                "z.toml: boot.delay = 5: expected a time of at most an hour",
            ),
            ("delay = \"2h\"", "z.toml: boot.delay = \"2h\": expected a time"),
            (
                "delay = \"61min\"",
                "z.toml: boot.delay = \"61min\": expected a time",
            ),
            (
                "begin = true",
                "z.toml: unknown key boot.begin = true: expected one of start, after, delay",
            ),
        ] {
            let found = boot(&format!("[boot]\n{line}")).unwrap_err().to_string();
            assert!(found.starts_with(message), "{found}");
        }
        assert!(boot("boot = 1").is_err());
        for text in [
            "",
            "s",
            "5",
            "-5s",
            "1.5s",
            "99999999999999999999s",
            "307445734561825861min",
        ] {
            assert_eq!(parse_delay(text), None, "{text}");
        }
    }

    fn zones(all: &[(&str, &[&str])]) -> BTreeMap<String, Boot> {
        let boot = |after: &[&str]| Boot {
            after: after.iter().map(|&name| name.into()).collect(),
            ..Boot::default()
        };
        all.iter()
            .map(|(name, after)| ((*name).to_owned(), boot(after)))
            .collect()
    }

    #[test]
    fn zones_follow_what_they_start_after() {
        let all = zones(&[("a", &["c"]), ("b", &[]), ("c", &["b", "absent"]), ("d", &[])]);
        let found = order(&all);
        assert_eq!(found.groups, [vec!["b", "d"], vec!["c"], vec!["a"]]);
        assert!(found.circle.is_empty());
        let all = zones(&[
            ("a", &["b"]),
            ("b", &["a"]),
            ("c", &["a"]),
            ("d", &[]),
            ("e", &["e"]),
        ]);
        let found = order(&all);
        assert_eq!(
            (found.groups, found.circle),
            (
                vec![vec!["d".to_owned()]],
                ["a", "b", "c", "e"].map(String::from).to_vec()
            )
        );
    }

    proptest! {
        /// Each zone is once in a group or in the circle, and in no group before what it starts after.
        #[test]
        fn an_order_has_all_zones(edges in prop::collection::vec((0..8_u8, 0..9_u8), 0..20)) {
            let mut all: BTreeMap<String, Boot> = (0..8).map(|n| (format!("z{n}"), Boot::default())).collect();
            for (zone, after) in &edges {
                all.get_mut(&format!("z{zone}")).unwrap().after.push(format!("z{after}"));
            }
            let found = order(&all);
            let place = |name: &String| found.groups.iter().position(|group| group.contains(name));
            let count = found.groups.iter().map(Vec::len).sum::<usize>() + found.circle.len();
            prop_assert_eq!(count, all.len());
            for (name, boot) in &all {
                match place(name) {
                    None => prop_assert!(found.circle.contains(name)),
                    Some(own) => for other in boot.after.iter().filter(|other| all.contains_key(*other)) {
                        prop_assert!(place(other).is_some_and(|other| other < own));
                    },
                }
            }
        }
    }
}
