//! `ringctl check` against a daemon on fakes: what would keep a zone from starting is named with its line,
//! and nothing is started or written.
#![cfg(test)]

#[allow(dead_code, reason = "each test program uses its part")]
mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use common::Machine;

fn ringctl(machine: &Machine, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ringctl"))
        .arg("--run-dir")
        .arg(machine.directory.path())
        .arg("--zones-dir")
        .arg(machine.path("defined"))
        .args(arguments)
        .output()
        .unwrap()
}

/// Returns the problems of files, and checks the status.
fn problems(machine: &Machine, files: &[&Path], status: i32) -> String {
    let files = files.iter().map(|file| file.to_str().unwrap());
    let arguments: Vec<&str> = ["check"].into_iter().chain(files).collect();
    let output = ringctl(machine, &arguments);
    assert_eq!(output.status.code(), Some(status), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn conflicts_with_zones_that_run_and_with_files_are_named() {
    let machine = Machine::new();
    let disk = "[[disk]]\npath = \"disk.img\"";
    let one = machine.zone_file("one", disk);
    assert_eq!(problems(&machine, &[&one], 0), "");
    assert!(
        ringctl(&machine, &["zone", "start", one.to_str().unwrap()])
            .status
            .success()
    );
    // The zone itself runs: a changed file of it may be checked.
    assert_eq!(problems(&machine, &[&one], 0), "");

    let two = machine.zone_file("two", disk);
    let image = machine.path("disk.img");
    let expected = format!(
        "{}:6: disk[0].path = {image:?}: zone one, which runs, has the image\n",
        two.display()
    );
    assert_eq!(problems(&machine, &[&two], 3), expected);
    assert!(ringctl(&machine, &["zone", "stop", "one"]).status.success());
    assert_eq!(problems(&machine, &[&two], 0), "");

    // Files that are checked together, and those of zones that start with the machine.
    let both = problems(&machine, &[&one, &two], 3);
    assert!(
        both.contains(&format!("zone one ({}) has the image", one.display())),
        "{both}"
    );
    assert!(
        both.contains(&format!("zone two ({}) has the image", two.display())),
        "{both}"
    );
    assert!(
        ringctl(&machine, &["zone", "define", one.to_str().unwrap()])
            .status
            .success()
    );
    assert_eq!(problems(&machine, &[&two], 0), "");
    assert!(ringctl(&machine, &["zone", "enable", "one"]).status.success());
    let defined = machine.path("defined/one.toml");
    let found = problems(&machine, &[&two], 3);
    assert!(
        found.ends_with(&format!("zone one ({}) has the image\n", defined.display())),
        "{found}"
    );
    // A definition is not in conflict with itself.
    assert_eq!(problems(&machine, &[&defined], 0), "");
    machine.assert_clean();
}

#[test]
fn mistakes_have_lines_and_json_has_the_same() {
    let machine = Machine::new();
    let bad = machine.zone_file("bad", "memroy = 1\n[boot]\nafter = [\"absent\"]");
    let path = bad.display().to_string();
    let missing = machine.path("missing.toml");
    let found = problems(&machine, &[&bad, &missing], 3);
    let lines: Vec<&str> = found.lines().collect();
    assert_eq!(lines.len(), 3, "{found}");
    assert!(
        lines[0].starts_with(&format!("{path}:5: unknown key memroy = 1: expected one of")),
        "{found}"
    );
    assert!(lines[0].ends_with("; did you mean memory?"), "{found}");
    assert!(
        lines[1].starts_with(&format!("{}: cannot read the zone file: ", missing.display())),
        "{found}"
    );
    assert_eq!(
        lines[2],
        format!("{path}:7: boot.after: no zone absent is defined")
    );
    let output = ringctl(&machine, &["check", "--json", &path]);
    assert_eq!(output.status.code(), Some(3));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        json[1],
        serde_json::json!({"file": path, "line": 7, "message": "boot.after: no zone absent is defined"})
    );

    let circle = |name: &str, after: &str| machine.zone_file(name, &format!("[boot]\nafter = [{after:?}]"));
    let (a, b) = (circle("a", "b"), circle("b", "a"));
    let found = problems(&machine, &[&a, &b], 3);
    assert_eq!(
        found
            .matches("boot.after: zones a, b wait for each other")
            .count(),
        2,
        "{found}"
    );
    // Without a daemon only files are compared.
    fs::remove_file(machine.path("sock")).unwrap();
    let output = ringctl(&machine, &["check", a.to_str().unwrap()]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("zones that run are not compared"));
}
