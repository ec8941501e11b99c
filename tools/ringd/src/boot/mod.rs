//! What is put into a zone's RAM before it starts: the kernel ([`kernel`]), the device tree ([`fdt`]) and the
//! initial RAM disk, at the places that [`layout`] assigns.

pub mod content;
pub mod fdt;
pub mod kernel;
pub mod layout;
