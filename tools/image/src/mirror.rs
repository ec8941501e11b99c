//! Which mirror of the Debian archive is used: the one of the machine's own apt, unless a variable names
//! another.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::cmd;

/// Names the Debian mirror when set; otherwise it is the one the machine's own apt uses.
pub const MIRROR_VARIABLE: &str = "RINGVISOR_DEBIAN_MIRROR";

/// Returns the mirror of the Debian archive that this machine uses.
///
/// # Errors
/// The machine's apt knows none.
pub fn mirror() -> Result<String> {
    if let Ok(mirror) = std::env::var(MIRROR_VARIABLE) {
        return Ok(mirror);
    }
    let format = "$(IDENTIFIER) $(ORIGIN) $(LABEL) $(REPO_URI)";
    let targets = cmd::text(cmd::command("apt-get").args(["indextargets", "--format", format]))?;
    let known = targets
        .lines()
        .find_map(|line| line.strip_prefix("Packages Debian Debian "));
    if let Some(uri) = known {
        return Ok(uri.trim().to_owned());
    }
    configured_mirror(Path::new("/etc/apt")).with_context(|| {
        format!("apt on this machine knows no Debian mirror; set {MIRROR_VARIABLE} to the address of one")
    })
}

/// Returns the first repository in apt's own files that is not for security updates: for machines that never
/// ran an update.
fn configured_mirror(etc: &Path) -> Option<String> {
    let mut files = vec![etc.join("sources.list")];
    let parts = fs::read_dir(etc.join("sources.list.d")).ok();
    files.extend(parts.into_iter().flatten().flatten().map(|e| e.path()));
    let text: String = files
        .iter()
        .filter(|f| f.extension().is_some_and(|e| e == "list" || e == "sources"))
        .filter_map(|f| fs::read_to_string(f).ok())
        .map(|t| t + "\n")
        .collect();
    text.lines()
        .filter_map(|line| line.strip_prefix("URIs:").or_else(|| line.strip_prefix("deb ")))
        .flat_map(str::split_whitespace)
        .find(|word| word.contains(":/") && word.contains("debian") && !word.contains("security"))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::configured_mirror;

    #[test]
    fn finds_the_mirror_in_both_kinds_of_source_files() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sources.list.d")).unwrap();
        assert_eq!(configured_mirror(dir.path()), None);
        fs::write(
            dir.path().join("sources.list.d/debian.sources"),
            "Types: deb\nURIs: http://mirror/debian-security\n\nTypes: deb\nURIs: http://mirror/debian\n",
        )
        .unwrap();
        assert_eq!(
            configured_mirror(dir.path()).as_deref(),
            Some("http://mirror/debian")
        );
        fs::write(
            dir.path().join("sources.list"),
            "deb [signed-by=/k] http://other/debian bookworm main\n",
        )
        .unwrap();
        assert_eq!(
            configured_mirror(dir.path()).as_deref(),
            Some("http://other/debian")
        );
    }
}
