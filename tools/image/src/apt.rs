//! A private apt state in the cache directory: own sources, own lists, own architecture.
//!
//! The machine's configuration is only read: the mirror is the one it already uses, and its proxy settings
//! apply. What was resolved once is written down per role ([`Apt::packages`]), so later runs ask no network.

use std::fs;
use std::hash::Hash;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::cache::{Cache, Key};
use crate::cmd;
use crate::mirror::mirror;

/// The Debian release that root and guests are made of.
pub const RELEASE: &str = "bookworm";

/// A downloaded package.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Deb {
    /// Name without architecture.
    pub name: String,
    /// Version as apt shows it.
    pub version: String,
    /// The archive in the cache.
    pub path: PathBuf,
}

/// What to resolve.
#[derive(Debug, Clone, Copy, Hash)]
pub struct Request<'a> {
    /// What is wanted by name; dependencies come by themselves.
    pub packages: &'a [&'a str],
    /// Whether the wanted packages come from backports.
    pub backports: bool,
}

/// One private apt state.
#[derive(Debug)]
pub struct Apt {
    dir: PathBuf,
    config: PathBuf,
}

impl Apt {
    /// Opens the state for packages of `architecture` (Debian's name, such as `arm64`).
    ///
    /// # Errors
    /// The directory cannot be written.
    pub fn open(cache: &Cache, architecture: &str) -> Result<Self> {
        let dir = cache.root().join("apt").join(architecture);
        for part in ["lists/partial", "unused/partial", "debs", "roles"] {
            fs::create_dir_all(dir.join(part)).with_context(|| format!("cannot create {}", dir.display()))?;
        }
        let config = dir.join("apt.conf");
        fs::write(&config, configuration(&dir, architecture))?;
        fs::write(dir.join("status"), "")?;
        Ok(Self { dir, config })
    }

    /// Returns the packages that `request` resolves to and `keep` accepts by name, downloaded.
    ///
    /// # Errors
    /// No mirror is known, a package does not exist, or the network fails.
    pub fn packages(&self, role: &str, request: Request<'_>, keep: fn(&str) -> bool) -> Result<Vec<Deb>> {
        let record = self.record(role, request);
        if let Some(debs) = self.recorded(&record) {
            return Ok(debs);
        }
        cmd::step(&format!(
            "downloading Debian packages: {}",
            request.packages.join(" ")
        ));
        self.update()?;
        let found = self.resolve(request, keep)?;
        self.download(&found)?;
        let text: String = found.iter().map(|f| format!("{} {}\n", f.file, f.size)).collect();
        let temporary = record.with_extension("new");
        fs::write(&temporary, text)?;
        fs::rename(&temporary, &record)?;
        self.recorded(&record)
            .with_context(|| format!("a download of {role} is incomplete; run again"))
    }

    /// Returns where the result for `role` is written down.
    fn record(&self, role: &str, request: Request<'_>) -> PathBuf {
        let key = Key::new(4).with(request);
        self.dir.join("roles").join(key.name(role))
    }

    /// Returns what an earlier run resolved, if every archive is still there.
    fn recorded(&self, record: &Path) -> Option<Vec<Deb>> {
        let text = fs::read_to_string(record).ok()?;
        text.lines()
            .map(|line| {
                let (file, size) = line.split_once(' ')?;
                let path = self.dir.join("debs").join(file);
                (fs::metadata(&path).ok()?.len() == size.parse().ok()?).then_some(())?;
                let (name, version) = name_and_version(file)?;
                Some(Deb { name, version, path })
            })
            .collect()
    }

    fn update(&self) -> Result<()> {
        let mirror = mirror()?;
        let keyring = Path::new("/usr/share/keyrings/debian-archive-keyring.gpg");
        let option = if keyring.exists() {
            format!(" [signed-by={}]", keyring.display())
        } else {
            String::new()
        };
        let sources: String = ["", "-updates", "-backports"]
            .map(|suite| format!("deb{option} {mirror} {RELEASE}{suite} main\n"))
            .concat();
        fs::write(self.dir.join("sources.list"), sources)?;
        cmd::run(self.apt("apt-get").args(["-q", "update"])).context("apt lists cannot be fetched")
    }

    fn resolve(&self, request: Request<'_>, keep: fn(&str) -> bool) -> Result<Vec<Found>> {
        let mut apt = self.apt("apt-get");
        apt.args(["-qq", "-y", "--no-install-recommends", "--print-uris"]);
        if request.backports {
            apt.args(["-t", &format!("{RELEASE}-backports")]);
        }
        let text = cmd::text(apt.arg("install").args(request.packages))?;
        let found: Vec<_> = text
            .lines()
            .filter_map(Found::parse)
            .filter(|f| keep(&f.name))
            .collect();
        if found.is_empty() {
            bail!("apt resolved {} to nothing", request.packages.join(" "));
        }
        Ok(found)
    }

    fn download(&self, found: &[Found]) -> Result<()> {
        let debs = self.dir.join("debs");
        let missing: Vec<_> = found
            .iter()
            .filter(|f| !fs::metadata(debs.join(&f.file)).is_ok_and(|m| m.len() == f.size))
            .map(|f| format!("{}={}", f.name, f.version))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        cmd::run(
            self.apt("apt-get")
                .current_dir(&debs)
                .args(["-q", "download"])
                .args(&missing),
        )
        .context("packages cannot be downloaded")
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = cmd::command(program);
        command.arg("-c").arg(&self.config);
        command
    }
}

/// Unpacks `debs` into one tree below `dest` with a merged `/usr`, leaving out the tar patterns in `exclude`.
///
/// # Errors
/// `dpkg-deb` or `tar` fails.
pub fn unpack(debs: &[Deb], dest: &Path, exclude: &[&str]) -> Result<()> {
    for deb in debs {
        let mut dpkg = cmd::command("dpkg-deb");
        let mut dpkg = dpkg
            .arg("--fsys-tarfile")
            .arg(&deb.path)
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start dpkg-deb")?;
        let archive = dpkg.stdout.take().context("no pipe from dpkg-deb")?;
        let mut tar = cmd::command("tar");
        tar.args([
            "-x",
            "--keep-directory-symlink",
            "--no-same-owner",
            "--delay-directory-restore",
            "-C",
        ])
        .arg(dest);
        tar.args(exclude.iter().map(|pattern| format!("--exclude={pattern}")))
            .stdin(archive);
        let unpacked = cmd::run(&mut tar);
        let read = dpkg.wait()?;
        if !read.success() {
            bail!("dpkg-deb cannot read {}: {read}", deb.path.display());
        }
        unpacked.with_context(|| format!("cannot unpack {}", deb.path.display()))?;
    }
    Ok(())
}

/// One line of `--print-uris`: `'URI' FILE SIZE HASH`.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    name: String,
    version: String,
    file: String,
    size: u64,
}

impl Found {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.strip_prefix('\'')?.split_once("' ")?.1.split_whitespace();
        let file = words.next()?.to_owned();
        let size = words.next()?.parse().ok()?;
        let (name, version) = name_and_version(&file)?;
        Some(Self {
            name,
            version,
            file,
            size,
        })
    }
}

/// Splits `NAME_VERSION_ARCHITECTURE.deb`, where a colon of the version is written `%3a`.
fn name_and_version(file: &str) -> Option<(String, String)> {
    let mut parts = file.strip_suffix(".deb")?.split('_');
    let name = parts.next()?.to_owned();
    let version = parts.next()?.replace("%3a", ":");
    Some((name, version))
}

fn configuration(dir: &Path, architecture: &str) -> String {
    let dir = dir.display();
    format!(
        r#"// Written by tools/image.
APT::Architecture "{architecture}";
#clear APT::Architectures;
APT::Architectures {{ "{architecture}"; }};
APT::Install-Recommends "false";
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::Retries "3";
Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled "false";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Dir::Etc::sourcelist "{dir}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::State "{dir}";
Dir::State::status "{dir}/status";
Dir::State::lists "{dir}/lists";
Dir::Cache "{dir}";
// Not where the packages are: what apt finds here it leaves out of --print-uris.
Dir::Cache::archives "{dir}/unused";
#clear DPkg::Post-Invoke;
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
"#
    )
}

#[cfg(test)]
mod tests {
    use super::Found;

    #[test]
    fn reads_print_uris() {
        let line = "'scheme://mirror/pool/p/procps/procps_4.0.2-3_arm64.deb' procps_2%3a4.0.2-3_arm64.deb 698228 MD5Sum:00";
        let found = Found::parse(line).unwrap();
        assert_eq!(found.name, "procps");
        assert_eq!(found.version, "2:4.0.2-3");
        assert_eq!(found.size, 698_228);
        assert_eq!(Found::parse("Reading package lists..."), None);
    }
}
