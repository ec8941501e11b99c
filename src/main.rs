//! The hypervisor binary for EL2; on any other target a hint on how to build it.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod el2;

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("ringvisor runs at EL2: build it with `make`, start it with `make run`");
    std::process::exit(2);
}
