//! What a zone asks for and cannot have: of the machine, and beside other zones.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use ringblk::{LocalOpener, OpenContext, Synthetic};

use crate::config::size::format_size;
use crate::config::{Cpus, ZoneConfig, quoted};
use crate::device::disk;
use crate::device::disk::config::DiskConfig;
use crate::device::net::config::{Forward, NetConfig, OWN_BRIDGE, Protocol, Source};
use crate::host::{cpus, hugepages};
use crate::zone::load;

/// Where another zone is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// It runs.
    Runs,
    /// In a file: one that is checked, too, or that of a zone that starts with the machine.
    File(String),
}

/// Another zone.
#[derive(Clone, Debug)]
pub struct Other {
    /// Where it is.
    pub place: Place,
    /// Its description.
    pub config: ZoneConfig,
    /// The CPUs that it has, if it runs.
    pub cpus: Vec<u32>,
}

impl Other {
    fn name(&self) -> String {
        match &self.place {
            Place::Runs => format!("zone {}, which runs,", self.config.name),
            Place::File(path) => format!("zone {} ({path})", self.config.name),
        }
    }

    /// Returns the numbers of the CPUs that it has or wants.
    fn numbers(&self) -> Vec<u32> {
        match &self.config.cpus {
            Cpus::List(list) => list.clone(),
            Cpus::Count(_) => self.cpus.clone(),
        }
    }
}

/// Returns what a zone cannot have, as keys and messages. `root` is `/` outside of tests. `runs`: a zone of
/// this name runs, and has what it would give back.
pub fn of(root: &Path, zone: &ZoneConfig, others: &[Other], runs: bool) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut note = |key: &str, message: String| found.push((key.to_owned(), message));
    for other in others.iter().filter(|other| other.config.name == zone.name) {
        note(
            "name",
            format!(
                "name = {}: {} has the name, too",
                quoted(&zone.name),
                other.name()
            ),
        );
    }
    if let Err(error) = load::open(&LocalOpener, zone) {
        let message = error.to_string();
        let key = if message.contains(": initrd = ") {
            "initrd"
        } else {
            "kernel"
        };
        note(key, message);
    }
    for message in of_cpus(root, zone, others) {
        note("cpus", message);
    }
    if let Some(message) = of_memory(root, zone, others) {
        note("memory", message);
    }
    for (index, disk) in zone.devices.disk.iter().enumerate() {
        let (key, path) = disk.source();
        let key = format!("disk[{index}].{key}");
        let value = quoted(&path.display().to_string());
        let mut taken = false;
        for other in others {
            if other
                .config
                .devices
                .disk
                .iter()
                .any(|theirs| is_one_image(disk, theirs))
            {
                note(&key, format!("{key} = {value}: {} has the image", other.name()));
                taken = true;
            }
        }
        if !taken
            && !runs
            && let Some(cause) = unusable(zone, index, disk)
        {
            note(&key, format!("{key} = {value}: {cause}"));
        }
    }
    for (index, net) in zone.devices.net.iter().enumerate() {
        for (key, message) in of_net(root, net, others, runs) {
            let key = format!("net[{index}].{key}");
            note(&key, format!("{key}{message}"));
        }
    }
    found
}

fn of_cpus(root: &Path, zone: &ZoneConfig, others: &[Other]) -> Vec<String> {
    let mut found = Vec::new();
    let value = &zone.cpus;
    if let Cpus::List(list) = value {
        for other in others {
            let theirs = other.numbers();
            let both: Vec<String> = list
                .iter()
                .filter(|cpu| theirs.contains(cpu))
                .map(u32::to_string)
                .collect();
            if !both.is_empty() {
                found.push(format!(
                    "cpus = {value}: {} has CPU {}",
                    other.name(),
                    both.join(", ")
                ));
            }
        }
    }
    // Without sysfs nothing is known of the machine.
    let Ok(all) = cpus::list(root) else { return found };
    let numbers: BTreeSet<u32> = all.iter().map(|cpu| cpu.number).collect();
    if let Cpus::List(list) = value {
        let missing: Vec<String> = list
            .iter()
            .filter(|cpu| !numbers.contains(cpu))
            .map(u32::to_string)
            .collect();
        if !missing.is_empty() {
            found.push(format!(
                "cpus = {value}: this machine has no CPU {}",
                missing.join(", ")
            ));
        }
    }
    let most = numbers.len().saturating_sub(1);
    let wanted = value.count();
    let theirs: usize = others.iter().map(|other| other.config.cpus.count()).sum();
    if wanted > most {
        found.push(format!(
            "cpus = {value}: this machine has {most} CPUs beside root's CPU 0"
        ));
    } else if wanted.saturating_add(theirs) > most {
        found.push(format!(
            "cpus = {value}: this machine has {most} CPUs beside root's CPU 0, and other zones have {theirs} of them"
        ));
    }
    found
}

fn of_memory(root: &Path, zone: &ZoneConfig, others: &[Other]) -> Option<String> {
    let pool = hugepages::total(root).ok()?;
    // Pages are added to the pool where root has memory left.
    let most = pool.saturating_add(hugepages::available_memory(root).ok()?);
    let theirs: u64 = others.iter().map(|other| other.config.memory).sum();
    if zone.memory.saturating_add(theirs) <= most {
        return None;
    }
    Some(format!(
        "memory = {}: huge pages and free memory are {}M, and other zones have {} of them",
        quoted(&format_size(zone.memory)),
        most >> 20,
        format_size(theirs)
    ))
}

/// Whether two disks would use one image, by whatever names, and not both only read it.
fn is_one_image(disk: &DiskConfig, other: &DiskConfig) -> bool {
    let identity = |disk: &DiskConfig| {
        fs::metadata(disk.source().1)
            .ok()
            .map(|file| (file.dev(), file.ino()))
    };
    let same = identity(disk).is_some_and(|file| identity(other) == Some(file));
    let other = DiskConfig {
        path: if same {
            disk.path.clone()
        } else {
            other.path.clone()
        },
        ..other.clone()
    };
    disk.conflicts(&other)
}

/// Returns why a disk's image cannot be used. It is opened for reading: nothing of it changes.
fn unusable(zone: &ZoneConfig, index: usize, disk: &DiskConfig) -> Option<String> {
    if let ("vhost_user", socket) = disk.source() {
        return no_socket(socket);
    }
    if Synthetic::is_named_by(&disk.path) {
        return None;
    }
    let reader = DiskConfig {
        readonly: true,
        ..disk.clone()
    };
    let slot = u8::try_from(index).unwrap_or(u8::MAX);
    if let Err(error) = disk::open::image(&OpenContext::default(), zone, slot, &reader, None) {
        return Some(error.to_string());
    }
    // Opened for writing and closed again: that changes nothing either.
    let written = File::options().write(true).open(&disk.path);
    written
        .err()
        .filter(|_| !disk.readonly)
        .map(|error| format!("cannot be written: {error}"))
}

fn no_socket(path: &Path) -> Option<String> {
    use std::os::unix::fs::FileTypeExt;
    match fs::metadata(path) {
        Ok(file) if file.file_type().is_socket() => None,
        Ok(_) => Some("is no socket".into()),
        Err(error) => Some(error.to_string()),
    }
}

fn of_net(root: &Path, net: &NetConfig, others: &[Other], runs: bool) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    let interface = |name: &str| root.join("sys/class/net").join(name);
    let theirs = || {
        others
            .iter()
            .flat_map(|other| other.config.devices.net.iter().map(move |net| (other, net)))
    };
    match &net.port.source {
        Source::Bridge(name) if name != OWN_BRIDGE && !interface(name).join("bridge").is_dir() => {
            found.push((
                "bridge",
                format!(" = {}: there is no bridge of this name", quoted(name)),
            ));
        }
        Source::Bridge(_) => {}
        Source::Tap(name) => {
            if !interface(name).join("tun_flags").exists() {
                found.push((
                    "tap",
                    format!(" = {}: there is no tap of this name", quoted(name)),
                ));
            }
            for (other, _) in theirs().filter(|(_, theirs)| theirs.port.source == net.port.source) {
                found.push(("tap", format!(" = {}: {} has it", quoted(name), other.name())));
            }
        }
        Source::VhostUser(path) => {
            if let Some(cause) = no_socket(path).filter(|_| !runs) {
                found.push((
                    "vhost_user",
                    format!(" = {}: {cause}", quoted(&path.display().to_string())),
                ));
            }
        }
        Source::User => {}
    }
    for forward in &net.port.forward {
        let value = quoted(&forward.to_string());
        let mut taken = false;
        for (other, theirs) in theirs() {
            if theirs.port.forward.iter().any(|theirs| forward.overlaps(theirs)) {
                found.push(("forward", format!(" = {value}: {} has the port", other.name())));
                taken = true;
            }
        }
        // On a bridge packets are redirected before a program sees them.
        if !taken && !runs && net.port.source == Source::User && is_taken(forward) {
            found.push(("forward", format!(" = {value}: another program has the port")));
        }
    }
    if let Some(mac) = &net.mac {
        for (other, _) in theirs().filter(|(_, theirs)| theirs.mac.as_ref() == Some(mac)) {
            found.push((
                "mac",
                format!(
                    " = {}: {} has the address",
                    quoted(&mac.to_string()),
                    other.name()
                ),
            ));
        }
    }
    found
}

/// Whether a port cannot be listened at.
fn is_taken(forward: &Forward) -> bool {
    let address = (
        forward.address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        forward.port,
    );
    let error = match forward.protocol {
        Protocol::Tcp => TcpListener::bind(address).err(),
        Protocol::Udp => UdpSocket::bind(address).err(),
    };
    error.is_some_and(|error| error.kind() == ErrorKind::AddrInUse)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::net::TcpListener;
    use std::os::unix::net::UnixListener;
    use std::path::Path;

    use super::{Other, Place, of};
    use crate::config::ZoneConfig;
    use crate::config::file::parse_file;

    fn zone(directory: &Path, name: &str, rest: &str) -> ZoneConfig {
        let text = format!("name = {name:?}\nmemory = \"16M\"\nkernel = \"Image\"\n{rest}\n");
        parse_file(name, &text, directory).unwrap().config
    }

    /// A machine with four CPUs and ten huge pages, and a directory with a kernel and images.
    fn machine() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &[u8]| {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        for number in 0_u8..4 {
            put(&format!("sys/devices/system/cpu/cpu{number}/online"), b"1\n");
            put(
                &format!("sys/devices/system/cpu/cpu{number}/of_node/reg"),
                &[0, 0, 0, 0, 0, 0, 0, number],
            );
        }
        put("proc/meminfo", b"MemAvailable: 20480 kB\n");
        put("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", b"10\n");
        put("sys/class/net/br0/bridge/x", b"");
        put("sys/class/net/tap0/tun_flags", b"");
        put("Image", b"\0 flat kernel");
        put("a.img", &[0; 4096]);
        put(
            "b.img",
            b"QFI\xfb and the rest of a header that is none, padded to a sector or so",
        );
        directory
    }

    fn messages(directory: &Path, zone: &ZoneConfig, others: &[Other], runs: bool) -> Vec<String> {
        of(directory, zone, others, runs)
            .into_iter()
            .map(|(key, message)| format!("{key}: {message}"))
            .collect()
    }

    #[test]
    fn a_zone_that_can_start_has_no_problems() {
        let machine = machine();
        let at = machine.path();
        let socket = UnixListener::bind(at.join("net.sock")).unwrap();
        let rest = "cpus = [1, 2]\n[[disk]]\npath = \"a.img\"\n[[disk]]\npath = \"zero:1M\"\n\
                    [[net]]\nbridge = \"ringvisor0\"\n[[net]]\nbridge = \"br0\"\n[[net]]\ntap = \"tap0\"\n\
                    [[net]]\nvhost_user = \"net.sock\"\n";
        assert_eq!(messages(at, &zone(at, "one", rest), &[], false), [""; 0]);
        drop(socket);
    }

    #[test]
    fn what_the_machine_lacks_is_named() {
        let machine = machine();
        let at = machine.path();
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let rest = format!(
            "initrd = \"none\"\ncpus = [1, 7]\n[[disk]]\npath = \"c.img\"\n[[disk]]\npath = \"b.img\"\n[[disk]]\nvhost_user = \"Image\"\n\
             [[net]]\nbridge = \"br1\"\n[[net]]\ntap = \"br0\"\n[[net]]\nvhost_user = \"none.sock\"\n\
             [[net]]\nuser = true\nforward = [\"127.0.0.1:{port}:22\"]\n"
        );
        let found = messages(at, &zone(at, "one", &rest), &[], false);
        for expected in [
            "initrd: one: initrd = ",
            "cpus: cpus = [1, 7]: this machine has no CPU 7",
            "disk[0].path: disk[0].path = ",
            "disk[1].path: disk[1].path = ",
            "disk[2].vhost_user: disk[2].vhost_user = ",
            "net[0].bridge: net[0].bridge = \"br1\": there is no bridge of this name",
            "net[1].tap: net[1].tap = \"br0\": there is no tap of this name",
            "net[2].vhost_user: net[2].vhost_user = ",
            "net[3].forward: net[3].forward = \"127.0.0.1:",
        ] {
            assert_eq!(
                found.iter().filter(|line| line.starts_with(expected)).count(),
                1,
                "{expected}: {found:#?}"
            );
        }
        assert_eq!(found.len(), 9, "{found:#?}");
        assert!(
            found
                .iter()
                .any(|line| line.contains("b.img") && line.contains("qcow2")),
            "{found:#?}"
        );
        assert_eq!(fs::read(at.join("a.img")).unwrap(), [0; 4096]);
        let large = ZoneConfig {
            memory: 64 << 20,
            ..zone(at, "large", "cpus = 4")
        };
        assert_eq!(
            messages(at, &large, &[], false),
            [
                "cpus: cpus = 4: this machine has 3 CPUs beside root's CPU 0",
                "memory: memory = \"64M\": huge pages and free memory are 40M, and other zones have 0 of them",
            ]
        );
    }

    #[test]
    fn what_other_zones_have_is_named() {
        let machine = machine();
        let at = machine.path();
        fs::hard_link(at.join("a.img"), at.join("link.img")).unwrap();
        let common = "[[net]]\nuser = true\nforward = [\"2222:22\"]\nmac = \"52:54:00:12:34:56\"\n";
        let one = zone(
            at,
            "one",
            &format!("cpus = [1, 2]\n[[disk]]\npath = \"a.img\"\n{common}"),
        );
        let file = Other {
            place: Place::File("two.toml".into()),
            config: zone(
                at,
                "one",
                &format!("cpus = [2, 3]\n[[disk]]\npath = \"link.img\"\n{common}"),
            ),
            cpus: Vec::new(),
        };
        let running = Other {
            place: Place::Runs,
            config: zone(at, "three", "cpus = 1"),
            cpus: vec![1],
        };
        let found = messages(at, &one, &[file, running.clone()], false);
        for expected in [
            "name: name = \"one\": zone one (two.toml) has the name, too",
            "cpus: cpus = [1, 2]: zone one (two.toml) has CPU 2",
            "cpus: cpus = [1, 2]: zone three, which runs, has CPU 1",
            "cpus: cpus = [1, 2]: this machine has 3 CPUs beside root's CPU 0, and other zones have 3 of them",
            "memory: memory = \"16M\": huge pages and free memory are 40M, and other zones have 32M of them",
            "net[0].forward: net[0].forward = \"2222:22\": zone one (two.toml) has the port",
            "net[0].mac: net[0].mac = \"52:54:00:12:34:56\": zone one (two.toml) has the address",
        ] {
            assert!(
                found.iter().any(|line| line == expected),
                "{expected}: {found:#?}"
            );
        }
        assert!(
            found
                .iter()
                .any(|line| line.ends_with("a.img\": zone one (two.toml) has the image")),
            "{found:#?}"
        );
        assert_eq!(found.len(), 8, "{found:#?}");
        // Both only read the image, and the ports are other ones.
        let reads = |name: &str, rest: &str| {
            zone(
                at,
                name,
                &format!("cpus = 1\n[[disk]]\npath = \"a.img\"\nreadonly = true\n{rest}"),
            )
        };
        let other = Other {
            place: Place::Runs,
            config: reads("two", "[[net]]\nuser = true\nforward = [\"127.0.0.2:22:22\"]\n"),
            cpus: vec![3],
        };
        let own = reads(
            "one",
            "[[net]]\nuser = true\nforward = [\"udp:22:22\", \"127.0.0.3:22:22\"]\n",
        );
        let found = messages(at, &own, &[other], true);
        assert_eq!(found, [""; 0]);
    }
}
