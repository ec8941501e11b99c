//! A virtio device at EL2: the transport's state and the page in which the guest reads its registers.

use ringvisor::virtio::{RegisterPage, Spec, Transport};

use super::arch;
use super::mm::frames::{FrameBox, RegisterFrame};

/// The register page that the guest reads.
pub struct Page(pub RegisterFrame);

impl RegisterPage for Page {
    fn set32(&self, offset: u16, value: u32) {
        self.0.set32(usize::from(offset), value);
        // Complete before the vCPU continues: the guest's load must see it.
        arch::dsb_ishst();
    }
}

/// One device.
pub struct Device {
    /// The state of the registers.
    pub transport: Transport,
    /// The copy that the guest reads.
    pub page: Page,
}

impl Device {
    /// Builds a device after power-on, its page filled. Returns `None` if there is no memory.
    pub fn new(spec: &Spec) -> Option<FrameBox<Self>> {
        let page = Page(RegisterFrame::new()?);
        let device = FrameBox::reserve()?.fill(Self {
            transport: Transport::new(spec),
            page,
        });
        device.transport.write_page(&device.page);
        Some(device)
    }

    /// Replaces the device in the same slot, or empties the slot; the page stays mapped.
    pub fn replace(&mut self, transport: Transport) {
        self.transport = transport;
        self.transport.write_page(&self.page);
    }
}
