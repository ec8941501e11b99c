//! The machines of a run: builds what they boot, runs them, keeps their consoles as raw logs.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use image::cpio::Archive;
use image::{BootFiles, Cache, cmd};

use super::collect::Collector;
use super::host_image::HostImage;
use super::plan::{Boot, Job, Kind, Plan};
use super::plugin::Counters;
use super::results::Results;
use crate::board::Board;
use crate::console::Line;
use crate::exec::{Next, watch};
use crate::machine::{Machine, Mode};
use crate::modules::value;
use crate::options::{MachineOptions, given};
use crate::project::Project;
use crate::rundir::RunDir;

/// Memory of a guest in MiB.
const GUEST_MEMORY: u32 = 512;
/// Memory of the machines with a root: its half, less what Linux takes, must hold guest, image and programs.
const ROOT_MEMORY: &str = "3G";
/// Command line of every guest, to which `BOOTARGS` are added as they are to root's. No `root=`: the first
/// program is the benchmark's own. Without page table isolation, as root's.
const GUEST_BOOTARGS: &str = "console=ttyAMA0 quiet panic=-1 kpti=off";
/// A flat binary that does nothing: `wfi; b .-4`.
const IDLE: [u8; 8] = [0x7f, 0x20, 0x03, 0xd5, 0xff, 0xff, 0xff, 0x17];
/// A flat binary whose four vCPUs enable all SPIs, make them pending, and store to GICD_CTLR without end:
///
/// ```text
///     mov x19, #1
/// 1:  mov x0, #0xc4000003; mov x1, x19; adr x2, 2f; mov x3, #0; hvc #0    // CPU_ON
///     add x19, x19, #1; cmp x19, #4; b.ne 1b
/// 2:  mov x4, #0x8000000; mov w6, #-1                                    // GICD_BASE
///     str w6, [x4, #0x104]; str w6, [x4, #0x108]; str w6, [x4, #0x204]; str w6, [x4, #0x208]
///     mov w5, #0
/// 3:  eor w5, w5, #2; str w5, [x4]; b 3b
/// ```
const STORM: [u32; 20] = [
    0xd2800033, 0xd2800060, 0xf2b88000, 0xaa1303e1, 0x100000c2, 0xd2800003, 0xd4000002, 0x91000673,
    0xf100127f, 0x54ffff01, 0xd2a10004, 0x12800006, 0xb9010486, 0xb9010886, 0xb9020486, 0xb9020886,
    0x52800005, 0x521f00a5, 0xb9000085, 0x17fffffe,
];
/// Seconds for a boot that measures a storm.
const STORM_LIMIT: u64 = 1500;
/// Bytes of RAM that the hypervisor keeps (`EL2_SIZE` in `linker.ld`).
pub const EL2_BYTES: u64 = 4 << 20;

const ROOT_SCRIPT: &str = include_str!("../../../../tests/bench/root.sh");
const GUEST_INIT: &str = include_str!("../../../../tests/bench/guest-init");
const JOBS_SCRIPT: &str = include_str!("../../../../tests/bench/jobs.sh");

/// What all boots of a run share.
#[derive(Debug)]
pub struct Bench<'a> {
    /// The project.
    pub project: &'a Project,
    /// The board.
    pub board: Board,
    /// The machine as the user wants it.
    pub options: MachineOptions,
    /// What is measured.
    pub plan: Plan,
    /// Where raw logs go.
    pub raw: PathBuf,
    /// The guest's kernel, initramfs and disk.
    pub guest: BootFiles,
    /// The disk with QEMU for root, if it could be had.
    pub qemu_disk: Option<PathBuf>,
    /// The plugin that counts instructions, if QEMU takes it.
    pub plugin: Option<PathBuf>,
}

impl Bench<'_> {
    /// Runs `boot`; what goes wrong is noted in `results`.
    pub fn run(&self, results: &mut Results, boot: &Boot) {
        if boot.configs.is_empty() && !boot.sizes && !boot.storm {
            return;
        }
        cmd::step(&format!("{}: {}", boot.label, boot.configs.join(" ")));
        let outcome = match boot.kind {
            Kind::Ours | Kind::Kvm => self.root(results, boot),
            Kind::Plain => boot
                .configs
                .iter()
                .try_for_each(|config| self.plain(results, boot, config)),
        };
        if let Err(error) = outcome {
            eprintln!("    {error:#}");
            results.fail(&boot.label, format!("{error:#}"));
        }
    }

    fn guest_cpus(boot: &Boot) -> u32 {
        if boot.count { 1 } else { 2 }
    }

    /// Seconds that one guest may take. Generous: a busy host is several times slower than an idle one, and a
    /// guest of KVM under emulation slower again.
    fn limit(&self, boot: &Boot) -> u64 {
        let jobs = boot.jobs.len() as u64;
        if boot.count {
            300 + jobs * 300
        } else {
            600 + jobs * (120 + u64::from(self.plan.seconds + self.plan.ramp))
        }
    }

    fn guest_bootargs(&self) -> Result<String> {
        let Some(more) = given(self.options.bootargs.as_ref()) else {
            return Ok(GUEST_BOOTARGS.into());
        };
        // They go through a shell and a zone file.
        if let Some(sign) = more
            .chars()
            .find(|sign| sign.is_control() || matches!(sign, '\'' | '"' | '\\' | '$' | '`'))
        {
            bail!(
                "BOOTARGS={more}: found {sign:?}, expected words on one line without quotes, backslash and dollar"
            );
        }
        Ok(format!("{GUEST_BOOTARGS} {more}"))
    }

    fn root(&self, results: &mut Results, boot: &Boot) -> Result<()> {
        let mut options = self.options.clone();
        let files = tempfile::tempdir()?;
        fs::write(files.path().join("initrd"), self.initrd(boot)?)?;
        fs::write(files.path().join("bench.conf"), self.conf(boot))?;
        fs::write(files.path().join("jobs.sh"), JOBS_SCRIPT)?;
        fs::write(files.path().join("idle.bin"), IDLE)?;
        let storm: Vec<u8> = STORM.iter().flat_map(|word| word.to_le_bytes()).collect();
        fs::write(files.path().join("storm.bin"), storm)?;
        if given(options.mem.as_ref()).is_none() {
            options.mem = Some(ROOT_MEMORY.into());
        }
        if boot.kind == Kind::Ours {
            options.el2_args = Some("loglevel=error".into());
        } else {
            options.hypervisor = Some("none".into());
            options.nested = true;
            let disk = self
                .qemu_disk
                .clone()
                .context("the disk with QEMU for root cannot be had")?;
            options.disks.push(("qemu".into(), disk));
        }
        if boot.count && boot.icount {
            // A guest of ours has a CPU of its own beside root's; KVM's runs on root's.
            options.smp = Some(if boot.kind == Kind::Ours { "2" } else { "1" }.into());
        }
        if boot.storm {
            // Root's CPU, and one for each vCPU.
            options.smp = Some("5".into());
        }
        let yes = |on: bool| if on { "yes" } else { "no" };
        let script = format!(
            "CONFIGS='{}' CMDLINE='{}' MODE={} CPUS={} MEMORY={GUEST_MEMORY} LIMIT={} SIZES={} STORM={} STATS={}\n{ROOT_SCRIPT}",
            boot.configs.join(" "),
            self.guest_bootargs()?,
            mode(boot),
            Self::guest_cpus(boot),
            self.limit(boot),
            yes(boot.sizes),
            yes(boot.storm),
            yes(boot.has_stats())
        );
        let dir = RunDir::create(&Cache::open(&self.project.dir)?.root().join("run"))?;
        let counters = self.count_arguments(boot, &dir, &mut options)?;
        let mode = Mode::Exec {
            script: script.into_bytes(),
            files: Some(files.path().to_owned()),
        };
        let machine = Machine::prepare(self.project, &self.board, &options, &mode)?;
        let storm = if boot.storm { STORM_LIMIT } else { 0 };
        let limit = Duration::from_secs(300 + storm + boot.configs.len() as u64 * self.limit(boot));
        self.watch(results, boot, &machine, limit, counters.as_ref(), None)
    }

    fn plain(&self, results: &mut Results, boot: &Boot, config: &'static str) -> Result<()> {
        let mut options = self.options.clone();
        let dir = RunDir::create(&Cache::open(&self.project.dir)?.root().join("run"))?;
        let initrd = dir.file("initrd");
        fs::write(&initrd, self.initrd(boot)?)?;
        let counters = self.count_arguments(boot, &dir, &mut options)?;
        let image = HostImage::create(dir.path())?;
        if let Some(note) = &image.note {
            results.fail("plain: image in the host's tmpfs", note);
        }
        let aio = config.strip_prefix("plain-").unwrap_or(config);
        let path = |p: &Path| value(&p.display().to_string());
        let disk = &self.board.qemu.disk;
        let cpus = Self::guest_cpus(boot);
        let mut arguments = words(&format!("-smp {cpus} -m {GUEST_MEMORY} -kernel"));
        arguments.extend([self.guest.kernel.display().to_string(), "-initrd".into()]);
        arguments.extend([
            initrd.display().to_string(),
            "-append".into(),
            self.guest_bootargs()?,
        ]);
        for (id, options) in [
            ("data", format!("file={},aio={aio}", path(&image.file))),
            ("tools", format!("file={},readonly=on", path(&self.guest.disk))),
        ] {
            let drive = format!("if=none,id={id},format=raw,{options}");
            let device = format!("{disk},drive={id},serial={id}");
            arguments.extend(["-drive".into(), drive, "-device".into(), device]);
        }
        let machine = Machine::bare(self.project, &self.board, &options, dir, arguments)?;
        let limit = Duration::from_secs(self.limit(boot));
        self.watch(results, boot, &machine, limit, counters.as_ref(), Some(config))
    }

    /// Runs the machine and collects what it says; `config` if it is one guest.
    fn watch(
        &self,
        results: &mut Results,
        boot: &Boot,
        machine: &Machine,
        limit: Duration,
        counters: Option<&Counters>,
        config: Option<&'static str>,
    ) -> Result<()> {
        let label = match config {
            Some(config) => format!("{}-{config}", boot.label),
            None => boot.label.clone(),
        };
        let log = self.raw.join(format!("{label}.log"));
        let mut log_file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut collector = Collector::new(results, boot, self.plan.counts, counters, config);
        let mut written = Ok(());
        let stop = watch(machine, limit, |line, _| {
            if let Line::Text(text) | Line::Panic(text) = line {
                if written.is_ok() {
                    written = writeln!(log_file, "{text}");
                }
                if let Some(shown) = collector.line(text) {
                    eprintln!("    {shown}");
                }
            }
            Next::Continue
        })?;
        collector.finish(&label, &stop.to_string());
        written.with_context(|| format!("cannot write {}", log.display()))
    }

    /// Adds `-icount` and the plugin to QEMU's arguments if `boot` is to have them.
    fn count_arguments(
        &self,
        boot: &Boot,
        dir: &RunDir,
        options: &mut MachineOptions,
    ) -> Result<Option<Counters>> {
        if !boot.icount {
            return Ok(None);
        }
        let mut arguments = options.qemu_args()?;
        arguments.extend(["-icount".into(), "shift=0".into()]);
        let counters = match &self.plugin {
            None => None,
            Some(library) => {
                let counters = Counters::create(dir.file("counters"))?;
                let low = self.board.load.hypervisor;
                arguments.extend(counters.arguments(library, low, low + EL2_BYTES));
                Some(counters)
            }
        };
        options.qemu_args = Some(shell_words::join(arguments));
        Ok(counters)
    }

    /// Returns the guest's initramfs with the benchmark's first program in place of its own.
    fn initrd(&self, boot: &Boot) -> Result<Vec<u8>> {
        let path = &self.guest.initramfs;
        let mut data = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        // Linux looks for the next archive on a boundary of 4 bytes.
        data.resize(data.len().next_multiple_of(4), 0);
        let mut archive = Archive::new();
        archive.file("init", 0o755, GUEST_INIT.as_bytes())?;
        archive.file("bench.conf", 0o644, self.conf(boot).as_bytes())?;
        archive.file("jobs.sh", 0o755, JOBS_SCRIPT.as_bytes())?;
        data.extend(archive.finish());
        Ok(data)
    }

    fn conf(&self, boot: &Boot) -> String {
        let jobs: Vec<String> = boot.jobs.iter().map(Job::word).collect();
        let [small, large] = self.plan.counts;
        format!(
            "MODE={} JOBS='{}' RUNTIME={} RAMP={} COUNTS='{small} {large}' LIMIT=240\n",
            mode(boot),
            jobs.join(" "),
            self.plan.seconds,
            self.plan.ramp
        )
    }
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

fn mode(boot: &Boot) -> &'static str {
    if boot.count { "count" } else { "fio" }
}
