//! Zones that are kept as files of a directory, and their start with the machine, against a daemon on fakes.
#![cfg(test)]

#[allow(dead_code, reason = "each test program uses its part")]
mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::Machine;

/// A directory of zones beside the machine's files.
fn ringctl(machine: &Machine, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ringctl"))
        .arg("--run-dir")
        .arg(machine.directory.path())
        .arg("--zones-dir")
        .arg(machine.path("defined"))
        .args(arguments)
        .env("VISUAL", machine.path("editor"))
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// Returns what a command printed, standard error first, and checks its status.
fn said(machine: &Machine, arguments: &[&str], status: i32) -> String {
    let output = ringctl(machine, arguments);
    let text = String::from_utf8([output.stderr, output.stdout].concat()).unwrap();
    assert_eq!(output.status.code(), Some(status), "{arguments:?}: {text}");
    text
}

fn define(machine: &Machine, name: &str, boot: &str) {
    let file = machine.zone_file(name, boot);
    said(machine, &["zone", "define", file.to_str().unwrap()], 0);
}

fn states(machine: &Machine) -> Vec<String> {
    let list = said(machine, &["zone", "list"], 0);
    let rows = list
        .lines()
        .skip(1)
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.map(|row| format!("{} {}", row[0], row[2])).collect()
}

#[test]
fn a_definition_keeps_its_text_and_its_meaning() {
    let machine = Machine::new();
    let text = "# why it is there\nname = \"one\" # a name\ncpus = 1\nmemory = \"16M\"\nkernel = \"Image\" # flat\n\
                [[disk]]\npath = \"disk.img\"\n[[disk]]\npath = \"null:1M\"\n[[net]]\nvhost_user = \"net.sock\"\n";
    let source = machine.path("source.toml");
    fs::write(&source, text).unwrap();
    let source = source.to_str().unwrap();
    said(&machine, &["zone", "define", source], 0);
    let defined = machine.path("defined/one.toml");
    let at = |name: &str| format!("{:?}", machine.path(name));
    let expected = text
        .replace("\"Image\"", &at("Image"))
        .replace("\"disk.img\"", &at("disk.img"))
        .replace("\"net.sock\"", &at("net.sock"));
    assert_eq!(fs::read_to_string(&defined).unwrap(), expected);
    let again = said(&machine, &["zone", "define", source], 1);
    assert!(
        again.contains("zone one is defined already") && again.contains("--replace"),
        "{again}"
    );
    said(&machine, &["zone", "define", "--replace", source], 0);

    said(&machine, &["zone", "enable", "one"], 0);
    let enabled = format!("{expected}\n[boot]\nstart = true\n");
    assert_eq!(fs::read_to_string(&defined).unwrap(), enabled);
    said(&machine, &["zone", "enable", "one"], 0);
    assert_eq!(fs::read_to_string(&defined).unwrap(), enabled);
    said(&machine, &["zone", "disable", "one"], 0);
    assert_eq!(
        fs::read_to_string(&defined).unwrap(),
        enabled.replace("true", "false")
    );
    assert_eq!(
        said(&machine, &["zone", "show", "one"], 0),
        enabled.replace("true", "false")
    );

    said(&machine, &["zone", "undefine", "one"], 0);
    assert!(!defined.exists());
    for command in ["undefine", "enable", "disable", "edit", "show"] {
        let message = said(&machine, &["zone", command, "one"], 5);
        assert!(
            message.contains("zone one is not defined: there is no"),
            "{message}"
        );
        said(&machine, &["zone", command, "../one"], 5);
    }
    let bad = machine.zone_file("bad", "colour = 1");
    let message = said(&machine, &["zone", "define", bad.to_str().unwrap()], 3);
    assert!(message.contains("unknown key colour"), "{message}");
    assert!(!machine.path("defined/bad.toml").exists());
}

#[test]
fn what_an_editor_writes_is_checked() {
    let machine = Machine::new();
    define(&machine, "one", "");
    let file = machine.path("defined/one.toml");
    let editor = |script: &str| {
        let path = machine.path("editor");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    };
    let before = fs::read_to_string(&file).unwrap();
    for (script, status, expected) in [
        ("sed -i s/cpus/cpsu/ \"$1\"", 3, "unknown key cpsu = 1"),
        (
            "sed -i s/one/two/ \"$1\"",
            3,
            "name = \"two\": expected \"one\", as the file is named",
        ),
        ("exit 3", 1, "ended with exit status: 3"),
    ] {
        editor(script);
        let message = said(&machine, &["zone", "edit", "one"], status);
        assert!(
            message.contains(expected) && message.contains("is unchanged"),
            "{message}"
        );
        assert_eq!(fs::read_to_string(&file).unwrap(), before);
        let draft = machine.path("defined/.one.toml.edit");
        assert!(draft.exists());
        // The next one goes on with it.
        editor("sed -i -e s/cpsu/cpus/ -e s/two/one/ \"$1\"");
        let message = said(&machine, &["zone", "edit", "one"], 0);
        assert!(message.contains("going on with"), "{message}");
        assert!(!draft.exists());
        assert_eq!(fs::read_to_string(&file).unwrap(), before);
    }
    editor("sed -i s/16M/32M/ \"$1\"");
    said(&machine, &["zone", "start", "one"], 0);
    let message = said(&machine, &["zone", "edit", "one"], 0);
    assert!(
        message.contains("zone one: memory = 32M in the file, 16M runs; its next start applies it"),
        "{message}"
    );
    assert_eq!(fs::read_to_string(&file).unwrap(), before.replace("16M", "32M"));
    assert!(!machine.path("defined/.one.toml.edit").exists());
}

#[test]
fn zones_start_with_the_machine_in_their_order() {
    let machine = Machine::new();
    said(&machine, &["zone", "start", "--boot"], 0);
    define(
        &machine,
        "a",
        "[boot]\nstart = true\nafter = [\"b\", \"absent\"]\ndelay = \"1ms\"",
    );
    define(&machine, "b", "[boot]\nstart = true");
    define(&machine, "c", "[boot]\nstart = false");
    let started = said(&machine, &["zone", "start", "--boot"], 0);
    assert_eq!(started, "ringctl: zone b runs\nringctl: zone a runs\n");
    assert_eq!(states(&machine), ["a running", "b running"]);

    // A changed file is compared with what runs.
    let file = machine.path("defined/a.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(
        &file,
        text.replace("16M", "8M")
            .replace("[boot]", "cmdline = \"quiet\"\n[boot]"),
    )
    .unwrap();
    let again = said(&machine, &["zone", "start", "--boot"], 0);
    for expected in [
        "zone a exists already, and is running",
        "zone a: memory = 8M in the file, 16M runs; its next start applies it",
        "zone a: cmdline = \"quiet\" in the file, \"\" runs",
    ] {
        assert!(again.contains(expected), "{again}");
    }
    assert!(!again.contains("zone b: "), "{again}");

    // They end in the opposite order; one that cannot take the key is stopped.
    said(&machine, &["zone", "pause", "b"], 0);
    let ended = said(
        &machine,
        &["zone", "shutdown", "--all", "--timeout", "1", "--force"],
        1,
    );
    let place = |text: &str| {
        ended
            .find(text)
            .unwrap_or_else(|| panic!("no {text:?} in {ended}"))
    };
    assert!(
        place("zone a did not end within 1 s: stopping it") < place("zone b is paused: stopping it"),
        "{ended}"
    );
    assert_eq!(states(&machine), ["a stopped", "b stopped"]);
    machine.assert_clean();
}

#[test]
fn a_zone_that_cannot_start_keeps_no_other_from_starting() {
    let machine = Machine::new();
    let boot = |after: &str| format!("[boot]\nstart = true\nafter = [{after}]");
    define(&machine, "a", &boot("\"lacking\""));
    define(&machine, "x", &boot("\"y\""));
    define(&machine, "y", &boot("\"x\""));
    define(&machine, "lacking", &boot(""));
    fs::write(machine.path("defined/broken.toml"), "name = 1\n").unwrap();
    let file = machine.path("defined/lacking.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("/Image", "/nothing")).unwrap();
    let message = said(&machine, &["zone", "start", "--boot"], 3);
    for expected in [
        "broken.toml: name = 1: expected",
        "zones x, y do not start",
        "zone lacking does not start: ",
        "zone a runs",
    ] {
        assert!(message.contains(expected), "{message}");
    }
    assert_eq!(states(&machine), ["a running"]);
    said(&machine, &["zone", "stop", "a"], 0);
    fs::remove_file(machine.path("sock")).unwrap();
    said(&machine, &["zone", "start", "--boot"], 7);
    assert!(Path::new(&machine.path("defined")).exists());
}
