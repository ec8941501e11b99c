//! The virtio-mmio transport: statement by statement (`checklist`, `hostile`), against an independent
//! reference model (`model`, `random`). `bench` plays driver and daemon.

mod bench;
mod checklist;
mod hostile;
mod model;
mod random;
