//! Mistakes in the text of a zone file, each with its line.
//!
//! The parser of `zone start` ends at the first one. Here it runs again without the key that it has refused,
//! until it refuses none: so there is one description of what a file may hold.

use std::path::Path;

use toml::{Table, Value};
use toml_edit::{Document, TableLike};

use super::{Problem, without};
use crate::config::error::Mistake;
use crate::config::file::{self, ZoneFile};

/// Most mistakes that are looked for in a file.
const MOST: usize = 100;
/// Values that stand for required keys whose own makes no sense, so that the others can be checked.
const STAND_INS: [(&str, &str); 3] = [("name", "zone"), ("memory", "512M"), ("kernel", "/dev/null")];

/// A part of a key's full name, such as `disk`, `[0]` or `path`.
#[derive(Debug, PartialEq, Eq)]
enum Part<'a> {
    Name(&'a str),
    Index(usize),
}

/// Returns the mistakes of a file, and what it describes without the keys that are wrong, unless a required
/// one is.
pub fn of(origin: &str, text: &str, directory: &Path) -> (Vec<Problem>, Option<ZoneFile>) {
    let mut problems = Vec::new();
    let mut note = |key: &str, message: &str| {
        problems.push(Problem {
            file: origin.to_owned(),
            line: line_of(text, key),
            message: without(origin, message),
        });
    };
    let mut table = match file::table(origin, text) {
        Ok(table) => table,
        Err(error) => {
            // With the place, as the parser shows it.
            note("", &error.to_string());
            return (problems, None);
        }
    };
    let mut stands_in = false;
    for _ in 0..MOST {
        let error = match file::file_from_table(origin, table.clone(), directory) {
            Ok(zone) => return (problems, (!stands_in).then_some(zone)),
            Err(error) => error,
        };
        let Some(mistake) = error.downcast_ref::<Mistake>() else {
            note("", &error.to_string());
            break;
        };
        note(&mistake.key, &(error.to_string() + &hint(mistake)));
        let removed = remove(&mut table, &parts(&mistake.key));
        let stand_in = match mistake.key.as_str() {
            "cpus" => Some(Value::Integer(1)),
            key => STAND_INS
                .iter()
                .find(|(name, _)| *name == key)
                .map(|(_, value)| (*value).into()),
        };
        match stand_in {
            Some(value) => {
                table.insert(mistake.key.clone(), value);
                stands_in = true;
            }
            None if removed => {}
            // A required key of a section: nothing of the section can be checked.
            None => {
                stands_in = true;
                let parts = parts(&mistake.key);
                let section = parts.split_last().map_or(&[][..], |(_, section)| section);
                if !remove(&mut table, section) {
                    break;
                }
            }
        }
    }
    (problems, None)
}

/// Returns the nearest known key to an unknown one.
fn hint(mistake: &Mistake) -> String {
    let name = mistake.key.rsplit('.').next().unwrap_or_default();
    let near = |known: &&String| strsim::damerau_levenshtein(name, known);
    let nearest = mistake
        .known
        .iter()
        .min_by_key(near)
        .filter(|known| near(known) <= 1 + name.len() / 4);
    nearest.map_or_else(String::new, |known| format!("; did you mean {known}?"))
}

fn parts(key: &str) -> Vec<Part<'_>> {
    let mut parts = Vec::new();
    for name in key.split('.').filter(|name| !name.is_empty()) {
        let (name, index) = name.split_once('[').unwrap_or((name, ""));
        parts.push(Part::Name(name));
        if let Ok(index) = index.trim_end_matches(']').parse() {
            parts.push(Part::Index(index));
        }
    }
    parts
}

/// Removes a key, or an entry of a list; returns whether there was one.
fn remove(table: &mut Table, parts: &[Part<'_>]) -> bool {
    let Some((Part::Name(name), rest)) = parts.split_first() else {
        return false;
    };
    match (table.get_mut(*name), rest) {
        (_, []) => table.remove(*name).is_some(),
        (Some(Value::Array(list)), [Part::Index(index)]) if *index < list.len() => {
            list.remove(*index);
            true
        }
        (Some(Value::Array(list)), [Part::Index(index), rest @ ..]) => {
            let entry = list.get_mut(*index).and_then(Value::as_table_mut);
            entry.is_some_and(|table| remove(table, rest))
        }
        (Some(Value::Table(table)), rest) => remove(table, rest),
        _ => false,
    }
}

/// Returns the text line, from 1 on, of a key by its full name; of its section, if that lacks it.
pub fn line_of(text: &str, key: &str) -> Option<usize> {
    let document = Document::parse(text).ok()?;
    let mut table: &dyn TableLike = document.as_table();
    let mut found = None;
    let mut parts = parts(key).into_iter().peekable();
    while let Some(Part::Name(name)) = parts.next() {
        let Some((key, item)) = table.get_key_value(name) else {
            break;
        };
        let mut span = key.span().or_else(|| item.span());
        let index = match parts.peek() {
            Some(Part::Index(index)) => Some(*index),
            _ => None,
        };
        let inner: Option<&dyn TableLike> = match index {
            None => item.as_table_like(),
            Some(index) => {
                parts.next();
                match item.as_array_of_tables() {
                    Some(list) => list.get(index).map(|table| {
                        span = table.span();
                        table as &dyn TableLike
                    }),
                    None => item
                        .as_array()
                        .and_then(|list| list.get(index)?.as_inline_table())
                        .map(|table| table as &dyn TableLike),
                }
            }
        };
        found = span.or(found);
        let Some(inner) = inner else { break };
        table = inner;
    }
    let before = text.get(..found?.start)?;
    Some(before.matches('\n').count() + 1)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{line_of, of};

    const TEXT: &str = "name = \"a b\"\ncpus = 0\nmemroy = \"1G\"\nmemory = \"1G\"\nkernel = \"k\"\non_crash = \"wait\"\n\
                        [[disk]]\npath = \"a\"\n\n[[disk]]\npath = \"b\"\nread_only = true\niops_burst = 3\n\
                        [[net]]\nmtu = 9000\n[boot]\nafter = \"x\"\nstart = 1\n";

    #[test]
    fn all_mistakes_are_found_with_their_lines() {
        let (problems, zone) = of("z.toml", TEXT, Path::new("/"));
        let found: Vec<String> = problems
            .iter()
            .map(|problem| format!("{}: {}", problem.line.unwrap_or(0), problem.message))
            .collect();
        for expected in [
            "1: name = \"a b\": expected 1 to 31 letters",
            "2: cpus = 0: expected 1 to 16 CPUs",
            "3: unknown key memroy = \"1G\": expected one of name, cpus, memory,",
            "6: on_crash = \"wait\": expected \"stop\" or \"restart\" or \"hold\"",
            "12: unknown key disk[1].read_only = true: expected one of",
            "13: disk[1].iops_burst = 3: expected the key iops beside it",
            "17: boot.after = \"x\": expected a list",
            "18: boot.start = 1: expected true or false",
        ] {
            assert_eq!(
                found.iter().filter(|line| line.starts_with(expected)).count(),
                1,
                "{expected}: {found:#?}"
            );
        }
        let hints: Vec<&String> = found
            .iter()
            .filter(|line| line.contains("did you mean"))
            .collect();
        assert!(
            hints.iter().any(|line| line.ends_with("; did you mean memory?")),
            "{found:#?}"
        );
        assert!(
            hints
                .iter()
                .any(|line| line.ends_with("; did you mean readonly?")),
            "{found:#?}"
        );
        // The network device that leads nowhere.
        assert!(
            found
                .iter()
                .any(|line| line.starts_with("14: ") && line.contains("net[0]")),
            "{found:#?}"
        );
        assert_eq!(found.len(), 9, "{found:#?}");
        assert!(zone.is_none());
    }

    #[test]
    fn a_file_without_its_wrong_keys_is_a_zone_if_none_of_them_is_required() {
        let text = "name = \"a\"\ncpus = 1\nmemory = \"16M\"\nkernel = \"k\"\ncolour = 1\n";
        let (problems, zone) = of("z.toml", text, Path::new("/d"));
        assert_eq!((problems.len(), problems[0].line), (1, Some(5)));
        assert!(!problems[0].message.contains("did you mean"), "{problems:?}");
        assert_eq!(zone.unwrap().config.kernel, Path::new("/d/k"));
        let (problems, zone) = of("z.toml", "name = \"a\"\n", Path::new("/"));
        let missing: Vec<&str> = problems
            .iter()
            .filter_map(|problem| problem.message.split(' ').next())
            .collect();
        assert_eq!(missing, ["cpus", "memory", "kernel"]);
        assert!(zone.is_none());
        let (problems, zone) = of("z.toml", "name = \n", Path::new("/"));
        assert!(
            problems[0].message.contains("not valid TOML") && zone.is_none(),
            "{problems:?}"
        );
    }

    #[test]
    fn keys_of_inline_tables_have_lines() {
        let text = "a = 1\ndisk = [\n  { path = \"x\" },\n  { path = \"y\",\n    b = 1 },\n]\n";
        assert_eq!(line_of(text, "disk[1].b"), Some(5));
        assert_eq!((line_of(text, "a"), line_of(text, "none")), (Some(1), None));
        assert_eq!(line_of(text, "disk[0].none"), Some(2));
    }
}
