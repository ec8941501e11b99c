//! Zones that are kept as files of one directory, `/etc/ringvisor/zones/NAME.toml`: defining, changing and
//! removing them, and how they differ from what runs.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, anyhow, bail};
use serde_json::Value;
use toml_edit::{DocumentMut, Item, TableLike, value};

use super::status::{Invalid, Missing};
use crate::config::boot::Boot;
use crate::config::file::{self, ZoneFile};
use crate::config::size::format_size;
use crate::config::{ZoneConfig, is_zone_name};
use crate::device::disk;
use crate::regular;

/// The directory, if no option names another.
pub const DIRECTORY: &str = "/etc/ringvisor/zones";
/// Most bytes of a zone file.
const SIZE_MAX: u64 = 1 << 20;
/// The keys with paths, by section.
const PATHS: [(&str, &[&str]); 4] = [
    ("", &["kernel", "firmware", "variables", "initrd", "console_log"]),
    ("disk", &["path", "vhost_user"]),
    ("net", &["vhost_user"]),
    ("console", &["socket", "log"]),
];

/// The directory with the files.
pub struct Definitions<'a>(pub &'a Path);

impl Definitions<'_> {
    /// Returns the path of a zone's file, whether there is one or not.
    ///
    /// # Errors
    /// No zone can have this name.
    pub fn path(&self, name: &str) -> anyhow::Result<PathBuf> {
        if !is_zone_name(name) {
            bail!(Missing(format!("no zone can have the name {name:?}")));
        }
        Ok(self.0.join(format!("{name}.toml")))
    }

    /// Returns the path of the file of a zone that is defined.
    ///
    /// # Errors
    /// There is none.
    pub fn existing(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.path(name)?;
        if !path.is_file() {
            bail!(Missing(format!(
                "zone {name} is not defined: there is no {}",
                path.display()
            )));
        }
        Ok(path)
    }

    /// Reads a zone's file.
    ///
    /// # Errors
    /// There is none, it describes no zone, or a zone of another name.
    pub fn load(&self, name: &str) -> anyhow::Result<ZoneFile> {
        load(&self.existing(name)?)
    }

    /// Reads all files, by what they are named; a directory that does not exist has none.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn all(&self) -> anyhow::Result<BTreeMap<String, anyhow::Result<ZoneFile>>> {
        let entries = match fs::read_dir(self.0) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(BTreeMap::new()),
            entries => entries.with_context(|| format!("cannot read {}", self.0.display()))?,
        };
        let mut all = BTreeMap::new();
        for entry in entries {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "toml")
                && let Some(name) = path.file_stem().and_then(|stem| stem.to_str())
            {
                all.insert(name.to_owned(), load(&path));
            }
        }
        Ok(all)
    }

    /// Makes a zone file one of the directory's. Relative paths in it become absolute; all else stays as it
    /// is written. Returns the zone's name.
    ///
    /// # Errors
    /// The file describes no zone, or one that is defined already, unless `replace`.
    pub fn define(&self, source: &Path, replace: bool) -> anyhow::Result<String> {
        let meant = file::load_file(source).map_err(Invalid)?;
        let name = meant.config.name.clone();
        let target = self.path(&name)?;
        if target.exists() && !replace {
            bail!(
                "zone {name} is defined already, by {}; --replace replaces it",
                target.display()
            );
        }
        let directory = std::path::absolute(source)?;
        let directory = directory.parent().unwrap_or(Path::new("/"));
        let mut document = read(source)?;
        make_absolute(&mut document, directory);
        self.write(&target, &document.to_string(), Some(&meant))?;
        Ok(name)
    }

    /// Removes a zone's file.
    ///
    /// # Errors
    /// There is none, or it cannot be removed.
    pub fn undefine(&self, name: &str) -> anyhow::Result<()> {
        let path = self.existing(name)?;
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
    }

    /// Writes into a zone's file whether it starts with the machine.
    ///
    /// # Errors
    /// There is no such file, or it describes no zone.
    pub fn enable(&self, name: &str, start: bool) -> anyhow::Result<()> {
        let path = self.existing(name)?;
        let mut meant = load(&path)?;
        if meant.boot.start == start {
            return Ok(());
        }
        meant.boot.start = start;
        let mut document = read(&path)?;
        let boot = document.entry("boot").or_insert_with(toml_edit::table);
        let boot = boot
            .as_table_like_mut()
            .with_context(|| format!("{}: boot is no section", path.display()))?;
        boot.insert("start", value(start));
        self.write(&path, &document.to_string(), Some(&meant))
    }

    /// Has a user change a zone's file with an editor. A file that makes no sense is not taken; what was
    /// written stays beside it.
    ///
    /// # Errors
    /// There is no such file, the editor fails, or the new file describes no zone or one of another name.
    pub fn edit(&self, name: &str) -> anyhow::Result<()> {
        let path = self.existing(name)?;
        let draft = self.0.join(format!(".{name}.toml.edit"));
        let text = regular::read_to_string(&path, SIZE_MAX)?;
        if fs::symlink_metadata(&draft).is_ok() {
            eprintln!("ringctl: going on with what was written into {}", draft.display());
        } else {
            fs::write(&draft, &text).with_context(|| format!("cannot write {}", draft.display()))?;
        }
        let editor = ["VISUAL", "EDITOR"]
            .iter()
            .find_map(|name| std::env::var(name).ok());
        let editor = editor
            .filter(|editor| !editor.trim().is_empty())
            .unwrap_or_else(|| "vi".into());
        // As other programs do: the variable may have arguments.
        let status = Command::new("sh")
            .args(["-c", &format!("{editor} \"$1\""), "sh"])
            .arg(&draft)
            .status();
        let status = status.with_context(|| format!("cannot run the editor {editor}"))?;
        if !status.success() {
            bail!(
                "the editor {editor} ended with {status}; {} is unchanged",
                path.display()
            );
        }
        let new = regular::read_to_string(&draft, SIZE_MAX)?;
        if new != text {
            let parsed = file::load_file(&draft).and_then(|new| expect_name(new, name, &draft));
            if let Err(error) = parsed {
                let kept = format!(
                    "{} is unchanged; what was written is in {}",
                    path.display(),
                    draft.display()
                );
                return Err(Invalid(anyhow!("{error}\n{kept}")).into());
            }
            if regular::read_to_string(&path, SIZE_MAX)? != text {
                bail!(
                    "{} has been changed meanwhile; what was written is in {}",
                    path.display(),
                    draft.display()
                );
            }
            self.write(&path, &new, None)?;
        }
        let _ = fs::remove_file(&draft);
        Ok(())
    }

    /// Writes a file, entirely or not at all, and only if it describes what it is meant to.
    fn write(&self, path: &Path, text: &str, meant: Option<&ZoneFile>) -> anyhow::Result<()> {
        let origin = path.display().to_string();
        if let Some(meant) = meant {
            let written = file::parse_file(&origin, text, self.0)?;
            if !differences(&written.config, &meant.config).is_empty() || written.boot != meant.boot {
                bail!(
                    "{}: a path in it is relative to its directory, and cannot be made absolute: write it so",
                    meant.config.origin
                );
            }
        }
        fs::create_dir_all(self.0).with_context(|| format!("cannot make {}", self.0.display()))?;
        // Not in place of a link, and with the owner and the mode that an administrator has given it.
        let path = &fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let mut new = path.as_os_str().to_owned();
        new.push(".new");
        let new = PathBuf::from(new);
        let replace = || -> io::Result<()> {
            regular::remove(&new)?;
            let mut file = fs::File::create_new(&new)?;
            file.write_all(text.as_bytes())?;
            if let Ok(old) = fs::metadata(path) {
                std::os::unix::fs::fchown(&file, Some(old.uid()), Some(old.gid()))?;
                file.set_permissions(old.permissions())?;
            }
            file.sync_all()?;
            fs::rename(&new, path)
        };
        replace().with_context(|| format!("cannot write {origin}"))
    }
}

fn read(path: &Path) -> anyhow::Result<DocumentMut> {
    let text = regular::read_to_string(path, SIZE_MAX)?;
    text.parse().with_context(|| path.display().to_string())
}

fn load(path: &Path) -> anyhow::Result<ZoneFile> {
    let name = path
        .file_stem()
        .and_then(|stem| stem.to_str())
        .unwrap_or_default();
    let read = file::load_file(path).and_then(|zone| expect_name(zone, name, path));
    read.map_err(|error| Invalid(error).into())
}

fn expect_name(zone: ZoneFile, name: &str, path: &Path) -> anyhow::Result<ZoneFile> {
    if zone.config.name != name {
        bail!(
            "{}: name = {:?}: expected {name:?}, as the file is named",
            path.display(),
            zone.config.name
        );
    }
    Ok(zone)
}

fn make_absolute(document: &mut DocumentMut, directory: &Path) {
    for (section, keys) in PATHS {
        let mut tables: Vec<&mut dyn TableLike> = Vec::new();
        if section.is_empty() {
            tables.push(document.as_table_mut());
        } else {
            match document.get_mut(section) {
                Some(Item::ArrayOfTables(list)) => {
                    tables.extend(list.iter_mut().map(|table| table as &mut dyn TableLike));
                }
                Some(Item::Value(toml_edit::Value::Array(list))) => {
                    let inline = list.iter_mut().filter_map(toml_edit::Value::as_inline_table_mut);
                    tables.extend(inline.map(|table| table as &mut dyn TableLike));
                }
                _ => {}
            }
        }
        for table in tables {
            for key in keys {
                if let Some(toml_edit::Value::String(text)) = table.get_mut(key).and_then(Item::as_value_mut)
                    && !disk::config::names_no_file(Path::new(text.value()))
                {
                    let path = directory.join(text.value()).display().to_string();
                    let mut new = toml_edit::Formatted::new(path);
                    *new.decor_mut() = text.decor().clone();
                    *text = new;
                }
            }
        }
    }
}

/// Returns how a zone's file differs from what runs, a text line for each key.
pub fn differences(file: &ZoneConfig, runs: &ZoneConfig) -> Vec<String> {
    let json = |config: &ZoneConfig| serde_json::to_value(config).unwrap_or_default();
    let mut found = Vec::new();
    compare("", &json(file), &json(runs), &mut found);
    found
}

fn compare(key: &str, file: &Value, runs: &Value, found: &mut Vec<String>) {
    if file == runs || key == "origin" {
        return;
    }
    let inner = |name: &str| {
        if key.is_empty() {
            name.to_owned()
        } else {
            format!("{key}.{name}")
        }
    };
    match (file, runs) {
        (Value::Object(a), Value::Object(b)) => {
            for name in a.keys().chain(b.keys().filter(|name| !a.contains_key(*name))) {
                let of = |map: &serde_json::Map<String, Value>| map.get(name).cloned().unwrap_or_default();
                compare(&inner(name), &of(a), &of(b), found);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.iter().chain(b).all(Value::is_object) => {
            for index in 0..a.len().max(b.len()) {
                let of = |list: &[Value]| list.get(index).cloned().unwrap_or_default();
                compare(&format!("{key}[{index}]"), &of(a), &of(b), found);
            }
        }
        _ => found.push(format!(
            "{key} = {} in the file, {} runs",
            show(key, file),
            show(key, runs)
        )),
    }
}

fn show(key: &str, value: &Value) -> String {
    match value {
        Value::Null => "nothing".into(),
        Value::Number(bytes) if key == "memory" => format_size(bytes.as_u64().unwrap_or(0)),
        value => value.to_string(),
    }
}

/// Returns the zones that start with the machine.
pub fn starting(all: &BTreeMap<String, anyhow::Result<ZoneFile>>) -> BTreeMap<String, Boot> {
    let boots = all
        .iter()
        .filter_map(|(name, file)| Some((name, &file.as_ref().ok()?.boot)));
    boots
        .filter(|(_, boot)| boot.start)
        .map(|(name, boot)| (name.clone(), boot.clone()))
        .collect()
}
