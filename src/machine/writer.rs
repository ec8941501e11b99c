//! [`Writer`]: writes a flattened device tree (chapter 5).
//!
//! Names are written as they are. Firmware's trees have names that the specification does not allow, which
//! Linux and `dtc` accept: properties of more than 31 characters (2.2.4.1), such as
//! `snps,quirk-frame-length-adjustment`, nodes that begin with a digit (2.2.1.1).

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::blob::{self, BEGIN_NODE, END, END_NODE, PROP};
use super::region::Region;

/// A tree in the making. Names and values are those of a [`super::DeviceTree`] or of about their size.
#[derive(Default)]
pub(super) struct Writer {
    structure: Vec<u8>,
    strings: Vec<u8>,
    /// Where in `strings` a name is.
    offsets: BTreeMap<String, u32>,
}

impl Writer {
    fn words(&mut self, words: &[u32]) {
        self.structure
            .extend(words.iter().flat_map(|word| word.to_be_bytes()));
    }

    /// Appends `bytes` and pads to the next token.
    fn bytes(&mut self, bytes: &[u8]) {
        self.structure.extend_from_slice(bytes);
        self.structure.resize(self.structure.len().next_multiple_of(4), 0);
    }

    /// Begins a node in the node that was begun last, the root node by an empty name.
    pub fn begin(&mut self, name: &str) {
        self.words(&[BEGIN_NODE]);
        self.bytes(&[name.as_bytes(), &[0]].concat());
    }

    /// Ends the node that was begun last.
    pub fn end(&mut self) {
        self.words(&[END_NODE]);
    }

    /// Writes a property. A node's properties come before its nodes.
    pub fn property(&mut self, name: &str, value: &[u8]) {
        let offset = match self.offsets.get(name) {
            Some(offset) => *offset,
            None => {
                let offset = self.strings.len() as u32;
                self.strings.extend_from_slice(name.as_bytes());
                self.strings.push(0);
                self.offsets.insert(name.to_string(), offset);
                offset
            }
        };
        self.words(&[PROP, value.len() as u32, offset]);
        self.bytes(value);
    }

    /// Writes a property of cells.
    pub fn cells(&mut self, name: &str, cells: &[u32]) {
        let value: Vec<u8> = cells.iter().flat_map(|cell| cell.to_be_bytes()).collect();
        self.property(name, &value);
    }

    /// Writes a property that is a string.
    pub fn string(&mut self, name: &str, value: &str) {
        self.property(name, &[value.as_bytes(), &[0]].concat());
    }

    /// Returns the blob, once the root node has ended.
    pub fn finish(mut self, reserved: &[Region], boot_cpu: u32) -> Vec<u8> {
        self.words(&[END]);
        blob::assemble(reserved, &self.structure, &self.strings, boot_cpu)
    }
}
