//! Files do not import each other in circles: one can be read without all others of a ring.
//!
//! Imports are `use crate::`, `use self::` and `use super::` declarations. Names that a module
//! re-exports count as those of the file that they come from. Tests may import what they test.
#![cfg(test)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A path of a module, from the crate on; empty: the crate.
type Module = Vec<String>;

struct Source {
    path: PathBuf,
    /// Text without comments, strings' contents and test modules.
    code: String,
    /// Names that it re-exports, and where they come from.
    exports: BTreeMap<String, Module>,
}

/// The sources of one crate.
struct Crate(BTreeMap<Module, Source>);

impl Crate {
    fn read(root: &Path) -> Self {
        let mut sources = BTreeMap::new();
        read_into(&mut sources, root, &mut Vec::new());
        let mut this = Self(sources);
        let modules: Vec<Module> = this.0.keys().cloned().collect();
        for module in modules {
            let exports = this.exports(&module);
            if let Some(source) = this.0.get_mut(&module) {
                source.exports = exports;
            }
        }
        this
    }

    fn exports(&self, module: &Module) -> BTreeMap<String, Module> {
        let mut exports = BTreeMap::new();
        for declaration in declarations(&self.0[module].code, "pub") {
            for path in expand(&declaration) {
                let (name, alias) = path.split_once(" as ").unwrap_or((&path, ""));
                let Some(target) = self.absolute(module, name, true) else {
                    continue;
                };
                let exported = if alias.is_empty() {
                    name.rsplit("::").next().unwrap_or(name)
                } else {
                    alias
                };
                exports.insert(exported.trim().to_owned(), target);
            }
        }
        exports
    }

    /// Returns the path from the crate on of what `path` names in `module`. `relative`: a path may begin with
    /// the name of a child.
    fn absolute(&self, module: &Module, path: &str, relative: bool) -> Option<Module> {
        let mut parts = path.split("::").map(str::trim).map(str::to_owned);
        let mut at = match parts.next()?.as_str() {
            "crate" => Vec::new(),
            "self" => module.clone(),
            "super" => module.split_last()?.1.to_vec(),
            child if relative => {
                let at: Module = module.iter().cloned().chain([child.to_owned()]).collect();
                self.0.contains_key(&at).then_some(at)?
            }
            _ => return None,
        };
        for part in parts {
            if part == "super" {
                at.pop()?;
            } else {
                at.push(part);
            }
        }
        Some(at)
    }

    /// Returns the file that has what `path` names: its module's, or the one that a re-export leads to.
    fn file_of(&self, path: &[String]) -> Module {
        let mut path = path.to_vec();
        for _ in 0..8 {
            let known = (0..=path.len())
                .rev()
                .find(|length| self.0.contains_key(&path[..*length]))
                .unwrap_or(0);
            let next = path
                .get(known)
                .and_then(|name| self.0[&path[..known]].exports.get(name));
            match next {
                Some(target) if *target != path => {
                    path = target.iter().chain(&path[known + 1..]).cloned().collect()
                }
                _ => return path[..known].to_vec(),
            }
        }
        path
    }

    fn imports(&self, module: &Module) -> BTreeSet<Module> {
        let code = &self.0[module].code;
        let private = declarations(code, "")
            .into_iter()
            .flat_map(|declaration| expand(&declaration));
        let paths = private.filter_map(|path| self.absolute(module, &path, false));
        paths
            .map(|path| self.file_of(&path))
            .filter(|file| file != module)
            .collect()
    }

    fn circles(&self) -> Vec<Vec<&Path>> {
        let imports: BTreeMap<&Module, BTreeSet<Module>> = self
            .0
            .keys()
            .map(|module| (module, self.imports(module)))
            .collect();
        let reach = |from: &Module| {
            let (mut seen, mut next) = (BTreeSet::new(), vec![from.clone()]);
            while let Some(module) = next.pop() {
                for target in &imports[&module] {
                    if seen.insert(target.clone()) {
                        next.push(target.clone());
                    }
                }
            }
            seen
        };
        let reached: BTreeMap<&Module, BTreeSet<Module>> = imports.keys().map(|m| (*m, reach(m))).collect();
        let mut circles = BTreeSet::new();
        for (module, targets) in &reached {
            let circle: Vec<&Path> = targets
                .iter()
                .filter(|target| reached[target].contains(*module) && targets.contains(*module))
                .map(|target| self.0[target].path.as_path())
                .collect();
            if circle.len() > 1 {
                circles.insert(circle);
            }
        }
        circles.into_iter().collect()
    }
}

fn read_into(sources: &mut BTreeMap<Module, Source>, file: &Path, module: &mut Module) {
    let Ok(text) = fs::read_to_string(file) else {
        return;
    };
    let code = without_tests(&text);
    let directory = match file.file_name().and_then(|name| name.to_str()) {
        Some("lib.rs" | "main.rs" | "mod.rs") => file.parent().unwrap_or(file).to_owned(),
        _ => file.with_extension(""),
    };
    let children: Vec<String> = code
        .lines()
        .filter_map(|line| {
            let line = line
                .trim()
                .trim_start_matches("pub(crate) ")
                .trim_start_matches("pub(super) ");
            let name = line
                .trim_start_matches("pub ")
                .strip_prefix("mod ")?
                .strip_suffix(';')?;
            Some(name.trim_start_matches("r#").to_owned())
        })
        .collect();
    let source = Source {
        path: file.to_owned(),
        code,
        exports: BTreeMap::new(),
    };
    sources.insert(module.clone(), source);
    for child in children {
        module.push(child.clone());
        for place in [
            directory.join(format!("{child}.rs")),
            directory.join(&child).join("mod.rs"),
        ] {
            if place.exists() {
                read_into(sources, &place, module);
            }
        }
        module.pop();
    }
}

/// Removes comments and what is compiled for tests alone.
fn without_tests(text: &str) -> String {
    let mut code = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.starts_with("#[cfg(test)]") || line.starts_with("#[cfg(any(test") {
            // The item that it stands before: one line, or up to a brace in the first column.
            let item = lines.by_ref().find(|line| !line.starts_with('#'));
            if item.is_some_and(|item| item.ends_with('{')) {
                lines.by_ref().find(|line| *line == "}");
            }
            continue;
        }
        code.push_str(line.split("//").next().unwrap_or(line));
        code.push('\n');
    }
    code
}

/// Returns the paths of `use` declarations, with braces, with this visibility: "pub" or none.
fn declarations(code: &str, visibility: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut lines = code.lines();
    while let Some(line) = lines.next() {
        let Some((before, path)) = line.split_once("use ") else {
            continue;
        };
        if before.trim().split('(').next().unwrap_or("") != visibility {
            continue;
        }
        let mut declaration = path.to_owned();
        while !declaration.contains(';') {
            let Some(line) = lines.next() else { break };
            declaration.push_str(line);
        }
        let path = declaration.split(';').next().unwrap_or("");
        found.push(path.split_whitespace().collect::<Vec<_>>().join(" "));
    }
    found
}

/// Returns each path of a `use` declaration.
fn expand(declaration: &str) -> Vec<String> {
    let Some((prefix, inner)) = declaration.split_once('{') else {
        return vec![declaration.trim().to_owned()];
    };
    let inner = inner.rsplit_once('}').map_or(inner, |(inner, _)| inner);
    let (mut depth, mut parts, mut part) = (0, Vec::new(), String::new());
    for character in inner.chars() {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(std::mem::take(&mut part));
                continue;
            }
            _ => {}
        }
        part.push(character);
    }
    parts.push(part);
    parts
        .iter()
        .map(|part| part.trim())
        .filter(|part| !part.is_empty())
        .flat_map(|part| {
            expand(part)
                .into_iter()
                .map(|end| format!("{}{end}", prefix.trim()))
        })
        .map(|path| path.trim_end_matches("::self").to_owned())
        .collect()
}

fn crates() -> Vec<PathBuf> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let tools = fs::read_dir(top.join("tools"))
        .unwrap()
        .map(|entry| entry.unwrap().path().join("src"));
    std::iter::once(top.join("src"))
        .chain(tools)
        .flat_map(|src| [src.join("lib.rs"), src.join("main.rs")])
        .filter(|root| root.exists())
        .collect()
}

#[test]
fn no_file_is_part_of_a_circle() {
    let mut report = String::new();
    let roots = crates();
    assert!(roots.len() > 8, "{roots:?}");
    for root in roots {
        for circle in Crate::read(&root).circles() {
            report.push_str(&format!("{}: {circle:#?}\n", root.display()));
        }
    }
    assert!(
        report.is_empty(),
        "files that import each other in a circle:\n{report}"
    );
}

#[test]
fn a_circle_is_noticed() {
    let directory = std::env::temp_dir().join(format!("circles-{}", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    let write = |name: &str, text: &str| fs::write(directory.join(name), text).unwrap();
    write("lib.rs", "mod a;\nmod b;\nmod c;\npub use c::Third;\n");
    write("a.rs", "use crate::{b::Second, Third};\npub struct First;\n");
    write("b.rs", "pub struct Second;\n");
    write(
        "c.rs",
        "pub struct Third;\n#[cfg(test)]\nmod tests {\n    use crate::a::First;\n}\n",
    );
    let root = directory.join("lib.rs");
    assert!(Crate::read(&root).circles().is_empty());
    write("c.rs", "use super::a::First;\npub struct Third;\n");
    let source = Crate::read(&root);
    let circles = source.circles();
    let names: Vec<_> = circles
        .iter()
        .flatten()
        .filter_map(|path| path.file_name())
        .collect();
    assert_eq!(names, ["a.rs", "c.rs"]);
    fs::remove_dir_all(&directory).unwrap();
}
