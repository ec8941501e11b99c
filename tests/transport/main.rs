//! The virtio-mmio transport: statement by statement (`checklist`, `features`, `queues`, `hostile`), against
//! an independent reference model (`model`, `random`). `bench` plays driver and daemon.
#![cfg(test)]

mod bench;
mod checklist;
mod features;
mod hostile;
mod model;
mod queues;
mod random;
