//! Puts board, options and files together: a QEMU command line, and a directory with the files of one run.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use image::initramfs::Overlay;
use image::{BootFiles, Cache, Flavour, cmd, ext4};

use crate::board::{Board, Qemu};
use crate::console::Nonce;
use crate::modules::{self, Boot, value};
use crate::options::{Hypervisor, MachineOptions, RootKernel, given};
use crate::project::Project;
use crate::rundir::RunDir;

/// What root's console does once the system is up.
#[derive(Debug, Clone)]
pub enum Mode {
    /// Runs a script, then powers off.
    Exec {
        /// The script's text.
        script: Vec<u8>,
        /// What it finds in `/mnt/files`.
        files: Option<PathBuf>,
    },
    /// Starts the zone of this file (below `/srv/zones`), then gives a shell.
    Run {
        /// Name of the zone file, or none for a plain shell.
        zone: Option<String>,
        /// How one logs into the guest from this machine.
        login: Option<Login>,
    },
}

/// How one logs into the guest of [`Mode::Run`] from this machine: by a port of it that QEMU forwards to
/// root's port [`Login::ROOT`], and that root forwards to the guest.
#[derive(Debug, Clone)]
pub struct Login {
    /// The port here.
    pub port: u16,
    /// The private key.
    pub key: PathBuf,
}

impl Login {
    /// Root's port that leads to the guest's sshd, as the boards' `zones/linux.toml` have it.
    pub const ROOT: u16 = 2222;

    /// Returns a login by a port that is free here, [`Self::ROOT`] if it is.
    ///
    /// # Errors
    /// No port is free, or the key cannot be made.
    pub fn new(project: &Project) -> Result<Self> {
        let any = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, Self::ROOT)).or_else(|_| any());
        let port = free
            .context("no port of this machine is free")?
            .local_addr()?
            .port();
        let key = image::machine::guest_key(&Cache::open(&project.dir)?)?;
        Ok(Self { port, key })
    }

    /// Returns the command that logs in. The guest makes its own key at its first start, another each time.
    pub fn command(&self) -> String {
        let key = self.key.display();
        let port = self.port;
        format!(
            "ssh -p {port} -i {key} -o UserKnownHostsFile=/dev/null -o StrictHostKeyChecking=no root@localhost"
        )
    }

    /// Returns QEMU's arguments for root's network.
    fn network(&self, model: &str) -> [String; 4] {
        let (here, root) = (self.port, Self::ROOT);
        [
            "-netdev".into(),
            format!("user,id=net0,hostfwd=tcp:127.0.0.1:{here}-:{root}"),
            "-device".into(),
            format!("{model},netdev=net0"),
        ]
    }
}

/// A machine that is ready to start.
#[derive(Debug)]
pub struct Machine {
    /// Its files; they are removed when this is dropped.
    pub dir: RunDir,
    /// By which its console's marks are known.
    pub nonce: Nonce,
    /// QEMU's program, for messages.
    pub program: String,
    arguments: Vec<String>,
}

impl Machine {
    /// Prepares a machine: makes what is missing in the cache, and this run's own files.
    ///
    /// # Errors
    /// An option is wrong, something was not built, or a file is not available.
    pub fn prepare(project: &Project, board: &Board, options: &MachineOptions, mode: &Mode) -> Result<Self> {
        let hypervisor = match options.hypervisor()? {
            Hypervisor::Built => Some(project.hypervisor()),
            Hypervisor::Binary(path) => Some(path),
            Hypervisor::None => None,
        };
        if let Some(path) = hypervisor.as_ref().filter(|p| !p.is_file()) {
            bail!(
                "the hypervisor is not built: no {}; run make first",
                path.display()
            );
        }
        let cache = Cache::open(&project.dir)?;
        let files = root_files(&cache, options)?;
        let program = program(&cache, board, options)?;
        let dir = RunDir::create(&cache.root().join("run"))?;
        let nonce = Nonce::default();
        let initramfs = dir.file("initramfs");
        let mut data = fs::read(&files.initramfs)?;
        data.extend(overlay(project, board, mode, &nonce)?);
        fs::write(&initramfs, data).with_context(|| format!("cannot write {}", initramfs.display()))?;

        let el2 = hypervisor.is_some() || options.nested;
        let mut arguments = base_arguments(&board.qemu, options, el2);
        let smp = options.smp(board.qemu.smp)?.to_string();
        arguments.extend(["-smp".into(), smp, "-m".into(), options.mem(&board.qemu.mem)?]);
        let boot = Boot {
            hypervisor,
            hypervisor_bootargs: join(&board.bootargs.hypervisor, given(options.el2_args.as_ref())),
            kernel: files.kernel,
            initramfs,
            bootargs: join(&board.bootargs.root, given(options.bootargs.as_ref())),
        };
        let modules = modules::arguments(board, &boot, (&program, &arguments), &dir.file("dtb"))?;
        arguments.extend(modules);
        let disk = |id: &str, image: &Path| disk(&board.qemu, id, image);
        arguments.extend(disk("root", &files.disk));
        if let Mode::Exec {
            files: Some(tree), ..
        } = mode
        {
            let path = dir.file("files.img");
            files_disk(tree, &path)?;
            arguments.extend(disk("files", &path));
        }
        for (id, image) in &options.disks {
            arguments.extend(disk(id, image));
        }
        if let Mode::Run {
            login: Some(login), ..
        } = mode
        {
            arguments.extend(login.network(&board.qemu.net));
        }
        arguments.extend(options.qemu_args()?);
        Ok(Self {
            dir,
            nonce,
            program,
            arguments,
        })
    }

    /// Prepares a machine of the board's kind that has nothing but what `more` gives it: no root, no
    /// hypervisor.
    ///
    /// # Errors
    /// An option is wrong, or QEMU is not available.
    pub fn bare(
        project: &Project,
        board: &Board,
        options: &MachineOptions,
        dir: RunDir,
        more: Vec<String>,
    ) -> Result<Self> {
        let cache = Cache::open(&project.dir)?;
        let mut arguments = base_arguments(&board.qemu, options, false);
        arguments.extend(more);
        arguments.extend(options.qemu_args()?);
        Ok(Self {
            dir,
            nonce: Nonce::default(),
            program: program(&cache, board, options)?,
            arguments,
        })
    }

    /// Returns the command that runs it, with `more` arguments; the caller sets up the streams. QEMU dies
    /// with the thread that starts it.
    pub fn command(&self, more: &[&str]) -> Command {
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--", &self.program])
            .args(&self.arguments)
            .args(more);
        // Where QEMU puts what is written to the disks.
        command.env("TMPDIR", self.dir.path());
        command
    }
}

/// Returns the QEMU to use.
///
/// # Errors
/// QEMU 10 is wanted and cannot be had.
pub fn program(cache: &Cache, board: &Board, options: &MachineOptions) -> Result<String> {
    Ok(match given(options.qemu.as_ref()) {
        Some("10") => image::qemu::obtain(cache)?.display().to_string(),
        Some(program) => program.to_owned(),
        None => board.qemu.program.clone(),
    })
}

fn root_files(cache: &Cache, options: &MachineOptions) -> Result<BootFiles> {
    Ok(match options.root_kernel()? {
        RootKernel::Debian(flavour) => image::machine::root_files(cache, flavour)?,
        RootKernel::File(kernel) => BootFiles {
            kernel,
            ..image::machine::root_files(cache, Flavour::Cloud)?
        },
    })
}

/// Returns the arguments that make any machine of the board's kind: its model, properties and CPU.
fn base_arguments(qemu: &Qemu, options: &MachineOptions, el2: bool) -> Vec<String> {
    let properties = if el2 && !qemu.el2.is_empty() {
        format!("{},{}", qemu.machine, qemu.el2)
    } else {
        qemu.machine.clone()
    };
    let cpu = given(options.cpu.as_ref()).unwrap_or(&qemu.cpu);
    ["-no-user-config", "-nic", "none", "-M", &properties, "-cpu", cpu]
        .map(str::to_owned)
        .to_vec()
}

fn join(base: &str, more: Option<&str>) -> String {
    match more {
        Some(more) => format!("{base} {more}"),
        None => base.to_owned(),
    }
}

/// Returns the arguments for a disk. What is written goes to a temporary file, so any number of machines can
/// share the disk image.
fn disk(qemu: &Qemu, id: &str, image: &Path) -> [String; 4] {
    let image = value(&image.display().to_string());
    [
        "-drive".into(),
        format!("if=none,id={id},format=raw,snapshot=on,discard=unmap,file={image}"),
        "-device".into(),
        format!("{},drive={id}", qemu.disk),
    ]
}

/// Makes an ext4 image of the user's files with 4 GiB to spare.
fn files_disk(tree: &Path, image: &Path) -> Result<()> {
    if !tree.is_dir() {
        bail!("FILES={}: not a directory", tree.display());
    }
    let size = ext4::usage(tree)?
        .saturating_add(4 << 30)
        .next_multiple_of(1 << 20);
    ext4::make(tree, image, size, "ringvisor-files").with_context(|| format!("FILES={}", tree.display()))?;
    if tree.join("lost+found").exists() {
        return Ok(());
    }
    ext4::remove_lost_and_found(image)
}

fn overlay(project: &Project, board: &Board, mode: &Mode, nonce: &Nonce) -> Result<Vec<u8>> {
    let (name, zone) = match mode {
        Mode::Exec { .. } => ("exec", ""),
        Mode::Run { zone, .. } => ("run", zone.as_deref().unwrap_or_default()),
    };
    let login = match mode {
        Mode::Run { login, .. } => login.as_ref().map(Login::command),
        Mode::Exec { .. } => None,
    };
    let network = if login.is_some() { "yes" } else { "no" };
    let conf = format!(
        "MODE={name}\nNONCE='{}'\nZONE='{zone}'\nDISK=yes\nHUGE_PERCENT={}\nCONSOLE_LEVEL=4\nNETWORK={network}\nLOGIN='{}'\nTERM_TYPE='{}'\nTERM_SIZE='{}'\n",
        nonce.text(),
        board.memory.huge_percent,
        login.unwrap_or_default().replace('\'', ""),
        plain_word(&std::env::var("TERM").unwrap_or_default()).unwrap_or("vt100"),
        terminal_size().unwrap_or_default(),
    );
    let mut overlay = Overlay::new(&conf)?;
    for program in project.root_programs() {
        overlay.program(&program)?;
    }
    for file in board.zone_files()?.iter().chain(&project.zone_payloads()) {
        overlay.zone_file(file)?;
    }
    if let Mode::Exec { script, .. } = mode {
        overlay.script(script)?;
    }
    Ok(overlay.finish())
}

/// Returns `text` if it can stand in a shell script without quotes.
fn plain_word(text: &str) -> Option<&str> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.+".contains(&b);
    (!text.is_empty() && text.bytes().all(plain)).then_some(text)
}

/// `rows N cols N` of our terminal, for the one at the other end of the serial line.
fn terminal_size() -> Option<String> {
    let mut stty = cmd::command("stty");
    let size = cmd::text(stty.arg("size").stdin(std::process::Stdio::inherit())).ok()?;
    let (rows, columns) = size.trim().split_once(' ')?;
    let (rows, columns): (u32, u32) = (rows.parse().ok()?, columns.parse().ok()?);
    (rows > 0 && columns > 0).then(|| format!("rows {rows} cols {columns}"))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{disk, files_disk, plain_word};
    use crate::board::Board;

    #[test]
    fn commas_in_names_are_doubled() {
        let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let qemu = Board::read(&project, None).unwrap().qemu;
        assert!(disk(&qemu, "root", Path::new("/x,y"))[1].ends_with("file=/x,,y"));
    }

    #[test]
    fn only_plain_words_go_into_the_settings() {
        assert_eq!(plain_word("xterm-256color"), Some("xterm-256color"));
        assert_eq!(plain_word("x'; reboot"), None);
        assert_eq!(plain_word(""), None);
    }

    #[test]
    fn a_files_argument_that_is_no_directory_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = files_disk(Path::new("/nonexistent/dir"), &dir.path().join("i")).unwrap_err();
        assert!(error.to_string().contains("FILES=/nonexistent/dir"), "{error}");
    }
}
