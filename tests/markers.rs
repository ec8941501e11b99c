//! Checks the tables of tests in the documentation against the sources: every item has a row, every test that
//! a row names exists, and every item with tests is marked in some source.
#![cfg(test)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Returns all Rust files and scripts of the project.
fn sources() -> Vec<PathBuf> {
    let mut todo: Vec<PathBuf> = ["src", "tests", "tools"]
        .iter()
        .map(|folder| top().join(folder))
        .collect();
    let mut found = Vec::new();
    while let Some(folder) = todo.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() && name != "target" && !name.starts_with('.') {
                todo.push(path);
            } else if name.ends_with(".rs") || name.ends_with(".sh") {
                found.push(path);
            }
        }
    }
    found
}

/// Returns the cells of all rows of Markdown tables.
fn rows(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("|---"))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
}

/// Returns the text in backquotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// Returns the numbers after `word`, such as 1, 2 and 36 in "word 1, 2 36", with the letter that they begin
/// with.
fn marks(text: &str, word: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for rest in text.split(word).skip(1) {
        let mut letter = String::new();
        for token in rest.split([' ', ',']).filter(|token| !token.is_empty()) {
            let token = token.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
            let digits = token.trim_start_matches(|c: char| ('a'..='l').contains(&c));
            if digits.is_empty() || !digits.chars().all(|c| c.is_ascii_digit()) {
                // After the numbers comes text, or the end of the line.
                let number: String = digits.chars().take_while(char::is_ascii_digit).collect();
                if !number.is_empty() && token.len() - digits.len() <= 1 {
                    let own = token.strip_suffix(digits).unwrap();
                    found.insert(format!("{}{number}", if own.is_empty() { &letter } else { own }));
                }
                break;
            }
            if token.len() > digits.len() {
                letter = token.chars().take(1).collect();
            }
            found.insert(format!("{letter}{digits}"));
        }
    }
    found
}

struct Sources {
    text: String,
}

impl Sources {
    fn new() -> Self {
        let own = Path::new(file!()).file_name();
        let files = sources().into_iter().filter(|path| path.file_name() != own);
        let text = files.map(|path| read(&path) + "\n").collect();
        Self { text }
    }

    /// Checks that each test that a cell names exists. Returns how many it names.
    fn check(&self, cell: &str) -> usize {
        let mut count = 0;
        for name in quoted(cell) {
            if name.contains('/') {
                assert!(top().join(name).exists(), "there is no {name}");
                count += 1;
            } else if let Some((_, function)) = name.rsplit_once("::") {
                assert!(
                    self.text.contains(&format!("fn {function}(")),
                    "no test {function}, which a table names as {name}"
                );
                count += 1;
            }
        }
        count
    }
}

#[test]
fn every_torture_item_has_a_row_and_its_tests_exist() {
    let sources = Sources::new();
    let marked = marks(&sources.text, "torture ");
    let text = read(&top().join("docs/torture.md"));
    let mut left: BTreeSet<String> = [
        ('a', 13),
        ('b', 15),
        ('c', 12),
        ('d', 8),
        ('e', 4),
        ('f', 3),
        ('g', 8),
        ('h', 3),
        ('i', 3),
        ('j', 2),
        ('k', 3),
        ('l', 2),
    ]
    .iter()
    .flat_map(|&(group, count)| (1..=count).map(move |number| format!("{group}{number}")))
    .collect();
    for row in rows(&text) {
        let [item, _, tests] = row[..] else { continue };
        if !left.remove(item) {
            continue;
        }
        if tests.starts_with("Not tested") {
            assert!(
                !marked.contains(item),
                "{item} has a test, which its row does not name"
            );
            continue;
        }
        assert!(
            sources.check(tests) > 0,
            "{item} names no test and does not say why"
        );
        assert!(marked.contains(item), "no source is marked: torture {item}");
    }
    assert!(left.is_empty(), "docs/torture.md has no rows for {left:?}");
}

#[test]
fn every_virtio_statement_has_a_row_and_its_tests_exist() {
    let sources = Sources::new();
    let marked = marks(&sources.text, "virtio-checklist ");
    let mut left: BTreeSet<u32> = (1..=66).collect();
    for file in ["docs/virtio.md", "docs/block.md"] {
        let text = read(&top().join(file));
        for row in rows(&text) {
            let [statements, tests] = row[..] else { continue };
            let numbers: Vec<u32> = statements
                .split([',', ' '])
                .filter(|token| !token.is_empty())
                .map_while(|token| token.parse().ok())
                .collect();
            let named = sources.check(tests);
            for number in numbers {
                left.remove(&number);
                assert!(
                    named == 0 || marked.contains(&number.to_string()),
                    "no source is marked: virtio-checklist {number}"
                );
                assert!(
                    named > 0 || tests.contains("offered"),
                    "statement {number} names no test and does not say why"
                );
            }
        }
    }
    assert!(left.is_empty(), "no rows for statements {left:?}");
}

#[test]
fn marks_are_read_as_they_are_written() {
    let found = marks(
        "// torture a9, b12, f3: x\n/* torture d4, 5 */ torture c1\n",
        "torture ",
    );
    let expected = ["a9", "b12", "f3", "d4", "d5", "c1"];
    assert_eq!(found, expected.map(str::to_owned).into());
}
