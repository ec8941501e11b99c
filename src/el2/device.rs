//! A virtio slot at EL2: the transport's state and the page that shows it to the guest.

use ringvisor::virtio::{RegisterPage, Spec, Transport};

use super::arch;
use super::mm::frames::{FrameBox, RegisterFrame};

/// The page of registers that the guest reads.
pub struct Page(pub RegisterFrame);

impl RegisterPage for Page {
    fn set32(&self, offset: u16, value: u32) {
        self.0.set32(usize::from(offset), value);
        // Complete before the vCPU goes on: the guest's load must see it.
        arch::dsb_ishst();
    }
}

/// One device.
pub struct Device {
    /// Its registers, the truth.
    pub transport: Transport,
    /// Its registers, as shown.
    pub page: Page,
}

impl Device {
    /// A device after power-on, its page filled.
    pub fn new(spec: &Spec) -> Option<FrameBox<Self>> {
        let page = Page(RegisterFrame::new()?);
        let device = FrameBox::reserve()?.fill(Self {
            transport: Transport::new(spec),
            page,
        });
        device.transport.write_page(&device.page);
        Some(device)
    }

    /// Another device in the same slot, or none: the page stays mapped.
    pub fn replace(&mut self, transport: Transport) {
        self.transport = transport;
        self.transport.write_page(&self.page);
    }
}
