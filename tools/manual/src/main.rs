//! `manual DIR`: manual pages and completions of `ringd` and `ringctl`, from their command lines.
//!
//! What is written below DIR is as below a prefix: `share/man/man8`, `share/bash-completion/completions`,
//! `share/zsh/vendor-completions`, `share/fish/vendor_completions.d`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Command, CommandFactory, Parser};
use clap_complete::Shell;
use clap_mangen::Man;

/// The section of the manual: system administration.
const SECTION: &str = "8";

/// Writes manual pages and completions.
#[derive(Parser)]
struct Options {
    /// The directory that stands for a prefix.
    directory: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let Options { directory } = Options::parse();
    for command in [ringd::daemon::Options::command(), ringd::cli::Options::command()] {
        completions(&command, &directory)?;
        let pages = directory.join("share/man/man8");
        fs::create_dir_all(&pages).with_context(|| pages.display().to_string())?;
        let mut command = command.disable_help_subcommand(true);
        // Gives commands of commands their full names, and options of all commands to each.
        command.build();
        manual(&command, &pages)?;
    }
    Ok(())
}

fn completions(command: &Command, directory: &Path) -> anyhow::Result<()> {
    for (shell, place, file) in [
        (
            Shell::Bash,
            "share/bash-completion/completions",
            command.get_name().to_owned(),
        ),
        (
            Shell::Zsh,
            "share/zsh/vendor-completions",
            format!("_{}", command.get_name()),
        ),
        (
            Shell::Fish,
            "share/fish/vendor_completions.d",
            format!("{}.fish", command.get_name()),
        ),
    ] {
        let place = directory.join(place);
        fs::create_dir_all(&place).with_context(|| place.display().to_string())?;
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut command.clone(), command.get_name(), &mut text);
        let path = place.join(file);
        fs::write(&path, text).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// Writes the page of a command and those of its commands: `ringctl.8`, `ringctl-zone.8`,
/// `ringctl-zone-start.8`.
fn manual(command: &Command, directory: &Path) -> anyhow::Result<()> {
    let name = command
        .get_display_name()
        .unwrap_or(command.get_name())
        .to_owned();
    let page = Man::new(command.clone())
        .title(name.to_uppercase())
        .section(SECTION)
        .manual("ringvisor");
    let mut text = Vec::new();
    page.render(&mut text)?;
    let path = directory.join(format!("{name}.{SECTION}"));
    fs::write(&path, text).with_context(|| path.display().to_string())?;
    let shown = command.get_subcommands().filter(|command| !command.is_hide_set());
    shown
        .into_iter()
        .try_for_each(|command| manual(command, directory))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use clap::CommandFactory;

    use super::{completions, manual};

    #[test]
    fn each_command_has_a_page_with_its_options() {
        let directory = tempfile::tempdir().unwrap();
        let mut command = ringd::cli::Options::command().disable_help_subcommand(true);
        command.build();
        manual(&command, directory.path()).unwrap();
        let page = |name: &str| fs::read_to_string(directory.path().join(name)).unwrap();
        let start = page("ringctl-zone-start.8");
        assert!(start.contains(".TH RINGCTL-ZONE-START 8"), "{start}");
        assert!(start.contains("memory") && start.contains("run\\-dir"), "{start}");
        assert!(page("ringctl-zone.8").contains("ringctl\\-zone\\-start(8)"));
        assert!(page("ringctl.8").contains("ringctl\\-zone(8)"));
        assert!(!directory.path().join("ringctl-help.8").exists());
    }

    #[test]
    fn each_shell_completes_the_commands() {
        let directory = tempfile::tempdir().unwrap();
        completions(&ringd::cli::Options::command(), directory.path()).unwrap();
        for file in [
            "share/bash-completion/completions/ringctl",
            "share/zsh/vendor-completions/_ringctl",
            "share/fish/vendor_completions.d/ringctl.fish",
        ] {
            let text = fs::read_to_string(directory.path().join(file)).unwrap();
            assert!(
                text.contains("shutdown") && text.contains("spare-disks"),
                "{file}"
            );
        }
    }
}
