//! [`Paths`]: what the worker reaches by name.
//!
//! A user without rights still reads what all users may read, and makes files where all may. Landlock (Linux
//! 5.13) leaves the worker its records, and sysfs and procfs to read. What is open, or comes from the broker,
//! is not concerned.

use std::io;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr,
    RulesetStatus, path_beneath_rules,
};

/// Rights that are restricted, as far as the kernel knows them.
const KNOWN: ABI = ABI::V5;
/// What is read.
const READ: [&str; 3] = ["/proc", "/sys", "/etc/machine-id"];

/// Rules for files, to be applied.
pub struct Paths(RulesetCreated);

impl Paths {
    /// Makes the rules; `records` is the directory of the worker's own files.
    ///
    /// # Errors
    /// The directory cannot be opened.
    pub fn new(records: &Path) -> io::Result<Self> {
        let reading = AccessFs::ReadFile | AccessFs::ReadDir;
        let writing = AccessFs::WriteFile | AccessFs::Truncate | AccessFs::MakeReg | AccessFs::RemoveFile;
        let records = PathFd::new(records).map_err(io::Error::other)?;
        let made = Ruleset::default()
            .handle_access(AccessFs::from_all(KNOWN))
            .and_then(Ruleset::create)
            // What there is not needs no rule; a file has no rights of directories.
            .and_then(|rules| rules.add_rules(path_beneath_rules(READ, reading)))
            .and_then(|rules| rules.add_rule(PathBeneath::new(records, reading | writing)));
        made.map(Self).map_err(io::Error::other)
    }

    /// Applies the rules to this thread and those that it starts. Where the kernel has no Landlock, that is
    /// logged.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn restrict(self) -> io::Result<()> {
        let status = self.0.restrict_self().map_err(io::Error::other)?;
        match status.ruleset {
            RulesetStatus::NotEnforced => {
                tracing::info!("this kernel has no Landlock: the worker may open what any user may");
            }
            ruleset => tracing::debug!(?ruleset, "what the worker reaches by name is restricted"),
        }
        Ok(())
    }
}
