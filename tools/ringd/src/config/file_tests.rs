//! Tests of [`super`]: what a zone file says is what the zone is, and each mistake names itself.

use std::path::Path;

use ringblk::{EngineKind, Format, HostCache};
use toml::{Table, Value};

use super::{KEYS, load, parse};
use crate::config::zone::FlashConfig;
use crate::config::{Cpus, OnCrash, OnReboot, ZoneConfig};
use crate::device::Configs;
use crate::device::net::config::{NetLimits, Source};
use crate::device::net::keys::from_options;

const GOOD: &str = r#"
name = "guest1"
cpus = 2
memory = "512M"
kernel = "Image"
"#;

fn parsed(text: &str) -> anyhow::Result<ZoneConfig> {
    parse("/zones/guest.toml", text, Path::new("/zones"), Table::new())
}

/// The message for [`GOOD`] with the line of `key` replaced by `line` (or `line` added at the end).
fn message(key: &str, line: &str) -> String {
    let mut text: String = GOOD
        .lines()
        .filter(|l| !l.starts_with(key))
        .map(|l| format!("{l}\n"))
        .collect();
    text.push_str(line);
    parsed(&text).expect_err(line).to_string()
}

#[test]
fn the_least_zone_has_defaults() {
    let zone = parsed(GOOD).unwrap();
    assert_eq!(zone.name, "guest1");
    assert_eq!(zone.cpus, Cpus::Count(2));
    assert_eq!(zone.memory, 512 << 20);
    assert_eq!(zone.kernel, Path::new("/zones/Image"));
    assert_eq!((zone.initrd.as_ref(), zone.cmdline.as_str()), (None, ""));
    assert_eq!(
        (zone.on_reboot, zone.on_crash),
        (OnReboot::Restart, OnCrash::Stop)
    );
    assert!(zone.devices.disk.is_empty());
}

#[test]
fn network_devices_are_read_and_checked() {
    let with = |section: &str| parsed(&format!("{GOOD}{section}"));
    assert_eq!(parsed(GOOD).unwrap().devices.net, []);
    let text = r#"
[[net]]
bridge = "ringvisor0"
mac = "52:54:00:12:34:56"
mtu = 9000
rate = "1Gbit"
pps = 1000
[[net]]
user = true
forward = ["2222:22", "udp:[::1]:5353:53"]
[[net]]
tap = "tap7"
queue_pairs = 2
"#;
    let zone = with(text).unwrap();
    let [bridge, user, tap] = &zone.devices.net[..] else {
        panic!("{:?}", zone.devices.net)
    };
    assert_eq!(
        (bridge.port.source.clone(), bridge.mtu),
        (Source::Bridge("ringvisor0".into()), 9000)
    );
    assert_eq!(
        bridge.mac.map(|mac| mac.to_string()).as_deref(),
        Some("52:54:00:12:34:56")
    );
    assert_eq!(
        (bridge.limits.rate, bridge.limits.pps),
        (Some(1_000_000_000), Some(1000))
    );
    assert_eq!((&user.port.source, user.port.forward.len()), (&Source::User, 2));
    let pairs = |vcpus| [bridge, user, tap].map(|net| net.pairs(vcpus));
    assert_eq!((pairs(2), pairs(16)), ([2, 1, 2], [7, 1, 2]));
    assert_eq!((tap.mtu, tap.mac, tap.limits), (1500, None, NetLimits::default()));
    // What ringctl sends is what was read.
    let sent = serde_json::to_string(&zone).unwrap();
    assert_eq!(serde_json::from_str::<ZoneConfig>(&sent).unwrap(), zone);
    for (section, expected) in [
        (
            "",
            "net[0].bridge is missing: expected one of bridge, tap, user and vhost_user",
        ),
        (
            "user = false",
            "net[0].user = false: expected true, or bridge, tap or vhost_user in its place",
        ),
        (
            "user = true\ntap = \"t\"",
            "net[0].user = true: expected only one of bridge, tap, user and vhost_user",
        ),
        (
            "bridge = \"b\"\ntap = \"t\"",
            "net[0].tap = \"t\": expected only one of bridge, tap, user and vhost_user",
        ),
        (
            "tap = \"t\"\nforward = [\"1:2\"]",
            "net[0].forward = \"1:2\": expected `user = true` or `bridge = \"ringvisor0\"` beside it",
        ),
        (
            "bridge = \"ringvisor0\"\nforward = [\"[::1]:1:2\"]",
            "net[0].forward = \"[::1]:1:2\": expected with a bridge another address than ::1",
        ),
        (
            "user = true\nforward = [\"1:2\", \"127.0.0.1:1:3\"]",
            "net[0].forward = \"127.0.0.1:1:3\": expected each port of root once",
        ),
        (
            "user = true\nforward = [\"1:2\"]\n[[net]]\nuser = true\nforward = [\"1:3\"]",
            "net[1].forward = \"1:3\": expected a port of root that no other device of the zone has",
        ),
        (
            "bridge = \"ringvisor0\"\nforward = [\"udp:53:53\"]",
            "net[0].forward = \"udp:53:53\": expected another port than 53, 67 and 547",
        ),
        (
            "user = true\nfilter = true",
            "net[0].filter = true: expected false with `user`",
        ),
        (
            "vhost_user = \"/s\"\nfilter = true",
            "net[0].filter = true: expected false with `vhost_user`",
        ),
        (
            "vhost_user = \"/s\"\nforward = [\"1:2\"]",
            "net[0].forward = \"1:2\": expected `user = true` or `bridge = \"ringvisor0\"` beside it",
        ),
        (
            "tap = \"t\"\naddresses = [\"10.0.0.1\"]",
            "net[0].addresses = [\"10.0.0.1\"]: expected `filter = true` beside it",
        ),
        (
            "tap = \"t\"\nfilter = true\naddresses = [\"10.0.0.1/8\"]",
            "net[0].addresses = [\"10.0.0.1/8\"]: expected a list of addresses",
        ),
        (
            "tap = \"t\"\nisolated = true",
            "net[0].isolated = true: expected false without a bridge",
        ),
        (
            "bridge = \"b*\"",
            "net[0].bridge = \"b*\": expected the name of a network interface",
        ),
        (
            "user = true\nforward = [\"22\"]",
            "net[0].forward = [\"22\"]: expected a list of [tcp:|udp:]",
        ),
        (
            "bridge = \"a/b\"",
            "net[0].bridge = \"a/b\": expected the name of a network interface",
        ),
        (
            "tap = \"a-name-of-20-letters\"",
            "net[0].tap = \"a-name-of-20-letters\": expected the name",
        ),
        (
            "tap = \"t\"\nmac = \"53:54:00:12:34:56\"",
            "net[0].mac = \"53:54:00:12:34:56\": expected a device's MAC",
        ),
        (
            "tap = \"t\"\nmtu = 1000",
            "net[0].mtu = 1000: expected 1280 to 65520",
        ),
        (
            "user = true\nmtu = 40000",
            "net[0].mtu = 40000: expected at most 32000",
        ),
        (
            "tap = \"t\"\nqueue_pairs = 8",
            "net[0].queue_pairs = 8: expected 1 to 7",
        ),
        (
            "user = true\nqueue_pairs = 2",
            "net[0].queue_pairs = 2: expected 1, with `user`",
        ),
        (
            "tap = \"t\"\nrate = \"1G\"",
            "net[0].rate = \"1G\": expected bits per second",
        ),
        (
            "tap = \"t\"\npps = 0",
            "net[0].pps = 0: expected packets per second, more than 0",
        ),
        (
            "vhost_user = \"/run/s\"\nuser = true",
            "net[0].vhost_user = \"/run/s\": expected only one of bridge",
        ),
        (
            "vhost_user = \"/run/s\"\npps = 5",
            "net[0].pps = 5: expected no limit with `vhost_user`",
        ),
        (
            "vhost_user = \"/run/s\"\n[[net]]\nvhost_user = \"/run/s\"",
            "net[1].vhost_user = \"/run/s\": expected a server that no other",
        ),
        (
            "tap = \"t\"\nvlan = 5",
            "unknown key net[0].vlan = 5: expected one of bridge, tap, user",
        ),
        (
            "tap = \"t\"\n[[net]]\ntap = \"t\"",
            "net[1].tap = \"t\": expected a tap that no other",
        ),
        (
            "tap = \"t\"\nmac = \"52:54:00:12:34:56\"\n[[net]]\ntap = \"u\"\nmac = \"52:54:00:12:34:56\"",
            "net[1].mac = \"52:54:00:12:34:56\": expected an address that no other",
        ),
    ] {
        let message = with(&format!("[[net]]\n{section}\n"))
            .expect_err(section)
            .to_string();
        assert!(message.contains(expected), "{message}\nexpected {expected}");
    }
    let message = with("[net]\n").unwrap_err().to_string();
    assert!(message.contains("expected [[net]] sections"), "{message}");
}

#[test]
fn network_devices_as_options() {
    let options = [
        "bridge=br0,mtu=9000,pps=5",
        "user,forward=2222:22,forward=udp:53:53",
        "bridge=br0,filter,isolated,addresses=10.0.0.1,addresses=fd00::1",
    ]
    .map(str::to_owned);
    let nets = from_options(&options).unwrap();
    assert_eq!((nets[0].mtu, nets[0].limits.pps), (9000, Some(5)));
    assert_eq!(
        (&nets[1].port.source, nets[1].port.forward.len()),
        (&Source::User, 2)
    );
    assert!(nets[2].port.filter && nets[2].port.isolated && nets[2].port.addresses.len() == 2);
    for (option, expected) in [
        ("br0", "command line: net = \"br0\": expected KEY=VALUE"),
        (
            "bridge=br0,mtu=x",
            "net[0].mtu = \"x\": expected bytes of a packet",
        ),
        ("speed=1", "unknown key net[0].speed"),
    ] {
        let message = from_options(&[option.to_owned()]).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}\nexpected {expected}");
    }
}

#[test]
fn an_entropy_device_is_there_if_its_section_is() {
    assert_eq!(parsed(GOOD).unwrap().devices.rng, None);
    let with = |section: &str| parsed(&format!("{GOOD}{section}"));
    let rng = with("[rng]\n").unwrap().devices.rng.unwrap();
    assert_eq!(rng.bps, None);
    let rng = with("[rng]\nbps = \"1M\"\n").unwrap().devices.rng.unwrap();
    assert_eq!(rng.bps, Some(1 << 20));
    for (section, expected) in [
        ("[rng]\nbps = 5\n", "rng.bps = 5: expected a size in quotes"),
        (
            "[rng]\nbps = \"0\"\n",
            "rng.bps = \"0\": expected a size in quotes",
        ),
        (
            "[rng]\nsource = \"x\"\n",
            "unknown key rng.source = \"x\": expected one of bps",
        ),
        ("rng = true\n", "rng = true: expected a [rng] section"),
        (
            "spare_disks = 32\n[rng]\n",
            "spare_disks = 32: expected at most 31 beside 0 disks",
        ),
    ] {
        let message = with(section).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn everything_can_be_said() {
    let text = format!(
        "{}{}",
        GOOD.replace("cpus = 2", "cpus = [2, 3]"),
        r#"
initrd = "/boot/initrd.cpio.gz"
cmdline = "console=ttyAMA0 root=/dev/vda rw"
on_reboot = "stop"
on_crash = "hold"
[[disk]]
path = "rootfs.img"
serial = "root0"
[[disk]]
path = "../data.img"
readonly = true
engine = "threads"
format = "qcow2"
cache = "writeback"
[[disk]]
path = "null:64M"
"#
    );
    let zone = parsed(&text).unwrap();
    assert_eq!(zone.cpus, Cpus::List(vec![2, 3]));
    assert_eq!(zone.initrd.as_deref(), Some(Path::new("/boot/initrd.cpio.gz")));
    assert_eq!((zone.on_reboot, zone.on_crash), (OnReboot::Stop, OnCrash::Hold));
    assert_eq!(zone.devices.disk[0].path, Path::new("/zones/rootfs.img"));
    assert_eq!(zone.devices.disk[0].serial.as_deref(), Some("root0"));
    assert_eq!(
        (zone.devices.disk[0].readonly, zone.devices.disk[0].engine),
        (false, EngineKind::IoUring)
    );
    assert_eq!(
        (zone.devices.disk[1].readonly, zone.devices.disk[1].engine),
        (true, EngineKind::Threads)
    );
    assert_eq!(
        (zone.devices.disk[0].format, zone.devices.disk[0].cache),
        (None, HostCache::None)
    );
    assert_eq!(
        (zone.devices.disk[1].format, zone.devices.disk[1].cache),
        (Some(Format::Qcow2), HostCache::Writeback)
    );
    assert_eq!(zone.devices.disk[2].path, Path::new("null:64M"));
    zone.devices.disk[2].check("z.toml", "disk[2].").unwrap();
}

#[test]
fn firmware_takes_the_place_of_a_kernel() {
    let with = |lines: &str| parsed(&GOOD.replace("kernel = \"Image\"", lines));
    assert_eq!(parsed(GOOD).unwrap().donated(), 512 << 20);
    let zone = with("firmware = \"u-boot.bin\"").unwrap();
    assert_eq!(zone.kernel, Path::new("/zones/u-boot.bin"));
    assert_eq!(
        (zone.flash.clone(), zone.donated()),
        (Some(FlashConfig::default()), 518 << 20)
    );
    let zone = with("firmware = \"u-boot.bin\"\nvariables = \"u-boot.vars\"").unwrap();
    let variables = zone.flash.as_ref().unwrap().variables.as_deref();
    assert_eq!(variables, Some(Path::new("/zones/u-boot.vars")));
    let sent = serde_json::to_string(&zone).unwrap();
    assert_eq!(serde_json::from_str::<ZoneConfig>(&sent).unwrap(), zone);
    for (lines, expected) in [
        (
            "kernel = \"k\"\nfirmware = \"f\"",
            "kernel = \"k\": expected kernel or firmware, not both",
        ),
        (
            "kernel = \"k\"\nvariables = \"v\"",
            "variables = \"v\": expected variables beside firmware only",
        ),
        (
            "firmware = \"\"",
            "firmware = \"\": expected the path of the firmware's flat image",
        ),
        (
            "firmware = \"f\"\nvariables = 1",
            "variables = 1: expected the path of a file",
        ),
        (
            "firmware = \"f\"\nload = 0x40000000",
            "load = 0x40000000: expected no such key beside firmware",
        ),
        (
            "firmware = \"f\"\ninitrd = \"i\"",
            "initrd = \"/zones/i\": expected no such key",
        ),
        (
            "firmware = \"f\"\ncmdline = \"c\"",
            "cmdline = \"c\": expected no such key",
        ),
    ] {
        let message = with(lines).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn options_win_over_the_file() {
    let mut over = Table::new();
    over.insert("memory".into(), "256M".into());
    over.insert("cpus".into(), Value::Array(vec![3.into()]));
    let zone = parse("z.toml", GOOD, Path::new("/"), over).unwrap();
    assert_eq!((zone.memory, zone.cpus), (256 << 20, Cpus::List(vec![3])));
}

#[test]
fn each_mistake_names_file_key_value_and_expectation() {
    let cases = [
        (
            "memory",
            "memory = \"12Q\"",
            "memory = \"12Q\": expected a size in quotes such as \"512M\"",
        ),
        (
            "memory",
            "memory = 512",
            "memory = 512: expected a size in quotes",
        ),
        (
            "memory",
            "memory = \"3M\"",
            "memory = \"3M\": expected a multiple of 2M between 8M and 64G",
        ),
        (
            "memory",
            "memory = \"99T\"",
            "memory = \"99T\": expected a multiple of 2M",
        ),
        ("memory", "", "memory is missing: expected a size"),
        ("name", "", "name is missing: expected the zone's name"),
        (
            "name",
            "name = \"a b\"",
            "name = \"a b\": expected 1 to 31 letters",
        ),
        (
            "name",
            "name = \"../x\"",
            "name = \"../x\": expected 1 to 31 letters",
        ),
        ("name", "name = 7", "name = 7: expected the zone's name in quotes"),
        ("cpus", "", "cpus is missing: expected how many CPUs"),
        ("cpus", "cpus = 0", "cpus = 0: expected 1 to 16 CPUs"),
        ("cpus", "cpus = -1", "cpus = -1: expected how many CPUs"),
        ("cpus", "cpus = 17", "cpus = 17: expected 1 to 16 CPUs"),
        ("cpus", "cpus = []", "cpus = []: expected a list of 1 to 16"),
        (
            "cpus",
            "cpus = [0, 1]",
            "cpus = [0, 1]: expected CPUs other than 0",
        ),
        (
            "cpus",
            "cpus = [2, 2]",
            "cpus = [2, 2]: expected each CPU once, but 2 is there twice",
        ),
        ("cpus", "cpus = [\"a\"]", "cpus = [\"a\"]: expected how many CPUs"),
        ("kernel", "", "kernel is missing: expected the path of a kernel"),
        (
            "kernel",
            "kernel = \"\"",
            "kernel = \"\": expected the path of a kernel",
        ),
        (
            "x",
            "on_reboot = \"halt\"",
            "on_reboot = \"halt\": expected \"restart\" or \"stop\"",
        ),
        (
            "x",
            "on_crash = 1",
            "on_crash = 1: expected \"stop\" or \"restart\" or \"hold\"",
        ),
        (
            "x",
            "colour = \"red\"",
            "unknown key colour = \"red\": expected one of name, cpus,",
        ),
        (
            "x",
            "disk = \"a.img\"",
            "disk = \"a.img\": expected [[disk]] sections",
        ),
        (
            "x",
            "[[disk]]",
            "disk[0].path is missing: expected the path of an image",
        ),
        (
            "x",
            "[[disk]]\npath = \"a\"\nmode = 1",
            "unknown key disk[0].mode = 1: expected one of path,",
        ),
        (
            "x",
            "[[disk]]\npath = \"a\"\nreadonly = \"no\"",
            "disk[0].readonly = \"no\": expected true or false",
        ),
        (
            "x",
            "[[disk]]\npath = \"a\"\nengine = \"aio\"",
            "disk[0].engine = \"aio\": expected \"io_uring\"",
        ),
        (
            "x",
            "[[disk]]\npath = \"a\"\nserial = \"123456789012345678901\"",
            "disk[0].serial = \"123456789012345678901\": expected at most 20 printable",
        ),
        (
            "x",
            "[[disk]]\npath = \"a\"\n[[disk]]\npath = \"a\"",
            "disk[1].path = \"/zones/a\": expected a file that is no other",
        ),
        ("x", "name = ", "not valid TOML: TOML parse error at line"),
    ];
    for (key, line, expected) in cases {
        let message = message(key, line);
        assert!(message.starts_with("/zones/guest.toml: "), "{line:?}: {message}");
        assert!(message.contains(expected), "{line:?}: {message}");
    }
}

#[test]
fn a_missing_zone_file_is_named() {
    let error = load(Path::new("/nonexistent/z.toml"), Table::new())
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("/nonexistent/z.toml: cannot read the zone file: No such file"),
        "{error}"
    );
}

#[test]
fn two_read_only_disks_may_share_a_file() {
    let disk = "[[disk]]\npath = \"a\"\nreadonly = true\n";
    assert!(parsed(&format!("{GOOD}{disk}{disk}")).is_ok());
}

#[test]
fn a_configuration_survives_its_way_to_the_daemon() {
    let zone = parsed(&format!("{GOOD}[[disk]]\npath = \"a\"")).unwrap();
    let json = serde_json::to_string(&zone).unwrap();
    assert_eq!(serde_json::from_str::<ZoneConfig>(&json).unwrap(), zone);
}

proptest::proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "\\PC*") {
        let _ = parsed(&text);
    }

    #[test]
    fn no_value_makes_it_panic(
        key in proptest::sample::select([KEYS, Configs::KEYS].concat()),
        value in "[\\[\\]{}\"a-z0-9=., -]{0,24}",
    ) {
        let _ = parsed(&format!("{GOOD}\n{key} = {value}"));
        let _ = message_or_zone(key, &value);
    }
}

fn message_or_zone(key: &str, value: &str) -> anyhow::Result<ZoneConfig> {
    let rest: String = GOOD
        .lines()
        .filter(|l| !l.starts_with(key))
        .map(|l| format!("{l}\n"))
        .collect();
    parsed(&format!("{rest}{key} = {value}"))
}

#[test]
fn a_misspelt_key_is_named_before_the_one_that_is_missing() {
    let text = "name = \"x\"\nmemory = \"64M\"\nkernel = \"k\"\ncpu = 1\n";
    let message = parse("z.toml", text, Path::new("/zones"), Table::new())
        .unwrap_err()
        .to_string();
    assert!(
        message.starts_with("z.toml: unknown key cpu = 1: expected one of name, cpus,"),
        "{message}"
    );
}

#[test]
fn consoles() {
    use crate::device::console::config::{ConsoleConfig, End};
    let zone = parsed(&format!(
        "console_log = \"uart.log\"\n{GOOD}[[console]]\npty = true\nlog = \"0.log\"\n[[console]]\n[[console]]\n\
         socket = \"/run/s\"\n"
    ))
    .unwrap();
    let expected = [
        ConsoleConfig {
            end: Some(End::Pty),
            log: Some("/zones/0.log".into()),
        },
        ConsoleConfig::default(),
        ConsoleConfig {
            end: Some(End::Socket("/run/s".into())),
            log: None,
        },
    ];
    assert_eq!(zone.devices.console, expected);
    assert_eq!(zone.devices.console_log, Some("/zones/uart.log".into()));
    // All of them have one slot, behind all others.
    assert_eq!(zone.devices.slots().last().unwrap().queues(4), 8);
    let console = "[[console]]\n";
    for (text, expected) in [
        ("pty = 1", "console[0].pty = 1: expected true or false"),
        (
            "pty = true\nsocket = \"s\"",
            "console[0].socket = \"s\": expected only one of pty and socket",
        ),
        (
            "port = 1",
            "unknown key console[0].port = 1: expected one of pty, socket, log",
        ),
        (
            "log = \"\"",
            "console[0].log = \"\": expected the path of a log file",
        ),
        (
            "log = \"l\"\n[[console]]\nlog = \"l\"",
            "console[1].log = \"/zones/l\": expected a file that no other",
        ),
        (
            "socket = \"l\"\n[[console]]\nsocket = \"l\"",
            "console[1].socket = \"/zones/l\": expected a socket that no other",
        ),
    ] {
        let error = parsed(&format!("{GOOD}{console}{text}")).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let error = parsed(&format!("{GOOD}{}", console.repeat(8)))
        .unwrap_err()
        .to_string();
    assert!(error.ends_with("console = 8: expected at most 7"), "{error}");
    let long = format!("{GOOD}{console}socket = \"{}\"", "s".repeat(108));
    assert!(
        parsed(&long)
            .unwrap_err()
            .to_string()
            .contains("expected at most 107 bytes")
    );
}
