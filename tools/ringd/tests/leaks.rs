//! Starts and stops of zones leak no descriptor. A test program of its own, because it counts the descriptors
//! of its process.
#![cfg(test)]

#[allow(dead_code, reason = "each test program uses its part")]
mod common;

use common::Machine;
use ringd::config::file;
use ringd::control::client::Client;
use ringd::control::protocol::Request;
use toml::Table;

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// On fakes (torture d1).
#[test]
fn starts_and_stops_leave_no_descriptor() {
    let machine = Machine::new();
    let path = machine.zone_file("z", "[[disk]]\npath = \"disk.img\"");
    let config = Box::new(file::load(&path, Table::new()).unwrap());
    let mut client = Client::connect(&machine.path("sock")).unwrap();
    let mut before = 0;
    for round in 0..300 {
        client
            .ask(&Request::Start {
                config: config.clone(),
            })
            .unwrap();
        client.ask(&Request::Stop { name: "z".into() }).unwrap();
        if round == 10 {
            before = descriptors();
        }
    }
    machine.assert_clean();
    assert_eq!(descriptors(), before);
}
