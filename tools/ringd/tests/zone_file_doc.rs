//! docs/zone-file.md against what `ringctl` accepts: every key of a zone file has a row there, every row is a
//! key, the values of an enumerated key are named, and the example describes a zone.
//!
//! Keys and values are taken from the messages with which `ringctl` refuses unknown ones.
#![cfg(test)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

/// The required keys of a zone.
const LEAST: &str = "name = \"z\"\ncpus = 1\nmemory = \"16M\"\nkernel = \"Image\"\n";

/// Returns the message with which `ringctl zone start` refuses a zone file. There is no daemon, so a valid
/// file ends in a message about that.
fn refusal(text: &str) -> String {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("zone.toml");
    fs::write(&file, text).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_ringctl"))
        .arg("--run-dir")
        .arg(directory.path())
        .args(["zone", "start"])
        .arg(&file)
        .output()
        .unwrap();
    assert!(!output.status.success(), "{output:?}");
    let message = String::from_utf8(output.stderr).unwrap();
    message.replace(&file.display().to_string(), "FILE")
}

/// Returns the keys of a section, `""` for the file's top, as the refusal of an unknown key lists them.
/// `None` if there is no such section.
fn keys(section: &str) -> Option<Vec<String>> {
    let mut text = match section {
        "" => format!("no_such_key = 1\n{LEAST}"),
        _ => format!("{LEAST}{section}\nno_such_key = 1\n"),
    };
    // A section may require keys of its own first.
    for _ in 0..8 {
        let message = refusal(&text);
        if let Some((_, known)) = message.split_once("no_such_key = 1: expected one of ") {
            return Some(known.trim().split(", ").map(str::to_owned).collect());
        }
        let (missing, _) = message.split_once(" is missing: expected ")?;
        let key = missing.rsplit([' ', '.']).next()?;
        text += &format!("{key} = \"x\"\n");
    }
    panic!("{section} requires too much");
}

/// Returns the keys of each section, by how the section begins in a file: of every key of the top that
/// accepts a table, or a list of tables.
fn sections(top: &[String]) -> BTreeMap<String, Vec<String>> {
    let mut found = BTreeMap::from([(String::new(), top.to_vec())]);
    for key in top {
        for section in [format!("[[{key}]]"), format!("[{key}]")] {
            if let Some(keys) = keys(&section) {
                found.insert(section, keys);
            }
        }
    }
    found
}

/// Returns the values of an enumerated key, as the refusal of another value lists them: `"a" or "b"`. Empty
/// for other keys.
fn choices(section: &str, key: &str) -> Vec<String> {
    let wrong = format!("{key} = \"no such value\"\n");
    let text = match section {
        "" => {
            let others = LEAST.lines().filter(|line| !line.starts_with(&format!("{key} ")));
            others.map(|line| format!("{line}\n")).collect::<String>() + &wrong
        }
        "[[disk]]" if key != "path" => format!("{LEAST}{section}\npath = \"x\"\n{wrong}"),
        _ => format!("{LEAST}{section}\n{wrong}"),
    };
    let message = refusal(&text);
    match message.trim().split_once("= \"no such value\": expected \"") {
        Some((_, values)) => {
            let values = values.trim_end_matches('"').split("\" or \"");
            values.map(str::to_owned).collect()
        }
        None => Vec::new(),
    }
}

fn page() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/zone-file.md");
    fs::read_to_string(path).unwrap()
}

/// Returns the rows of the page by section: key and value column. A section's heading is its beginning in a
/// file, in backquotes.
fn rows(page: &str) -> BTreeMap<String, BTreeMap<String, String>> {
    let mut found = BTreeMap::<_, BTreeMap<_, _>>::new();
    let mut section = String::new();
    for line in page.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            let own = heading.strip_prefix('`').and_then(|rest| rest.strip_suffix('`'));
            section = own.unwrap_or_default().to_owned();
        }
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [key, value, _, _] = cells[..] else { continue };
        let Some(key) = key.strip_prefix('`').and_then(|rest| rest.strip_suffix('`')) else {
            continue;
        };
        let earlier = found
            .entry(section.clone())
            .or_default()
            .insert(key.to_owned(), value.to_owned());
        assert!(earlier.is_none(), "{section} {key} has two rows");
    }
    found
}

#[test]
fn every_key_has_a_row_and_every_row_is_a_key() {
    let accepted = sections(&keys("").unwrap());
    let documented = rows(&page());
    assert!(accepted.contains_key("[[disk]]"), "{accepted:?}");
    assert_eq!(
        accepted.keys().collect::<Vec<_>>(),
        documented.keys().collect::<Vec<_>>(),
        "sections: ringctl's on the left, docs/zone-file.md's on the right"
    );
    for (section, keys) in &accepted {
        let mut keys: Vec<_> = keys.iter().collect();
        keys.sort();
        let rows: Vec<_> = documented[section].keys().collect();
        assert_eq!(
            keys, rows,
            "{section}: ringctl's keys on the left, docs/zone-file.md's on the right"
        );
    }
}

#[test]
fn values_to_choose_from_are_those_of_the_rows() {
    let documented = rows(&page());
    let mut count = 0;
    for (section, rows) in &documented {
        for (key, value) in rows {
            let choices = choices(section, key);
            for choice in &choices {
                assert!(
                    value.contains(&format!("`\"{choice}\"`")),
                    "{section} {key}: no {choice} in {value}"
                );
            }
            count += usize::from(!choices.is_empty());
            let written = value.matches("`\"").count();
            assert!(
                choices.is_empty() || written == choices.len(),
                "{section} {key}: {value}, but ringctl knows {choices:?}"
            );
        }
    }
    assert!(count >= 6, "only {count} keys with values to choose from");
}

#[test]
fn the_example_is_a_zone() {
    let page = page();
    let (_, rest) = page.split_once("```toml\n").unwrap();
    let (example, _) = rest.split_once("```").unwrap();
    let message = refusal(example);
    assert!(!message.contains("FILE"), "{message}");
    let message = refusal(&example.replace("guest1", "no name"));
    assert!(message.contains("FILE: name"), "{message}");
}
