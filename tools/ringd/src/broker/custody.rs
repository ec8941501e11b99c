//! [`Custody`]: commands of the worker that make, feed and end zones, checked before EL2 gets them.
//!
//! EL2 executes them from the broker's page only, and takes any of root's RAM for a zone. So it is the broker
//! that says which memory a zone is given: that of the file of huge pages that the broker itself made for it,
//! each block once.

use std::collections::BTreeMap;
use std::sync::Arc;

use ringvisor::abi::command::{Header, Op, ZoneCreate};
use zerocopy::FromBytes;

use crate::config::is_zone_name;
use crate::hv::{Control, NOT_GRANTED, Refusal, text};

/// EL2, and the memory that was made for zones and that EL2 has not been given yet.
pub struct Custody {
    control: Arc<dyn Control>,
    /// Addresses of blocks by zone.
    made: BTreeMap<String, Vec<u64>>,
}

impl Custody {
    /// Returns the custody of nothing.
    pub fn new(control: Arc<dyn Control>) -> Self {
        Self {
            control,
            made: BTreeMap::new(),
        }
    }

    /// Whether EL2 has a zone of this name.
    pub fn has_zone(&self, zone: &str) -> bool {
        self.control.has_zone(zone)
    }

    /// Begins to make or remove memory for a zone: what was made before is not given to it any more. Returns
    /// whether that may be; not if EL2 has a zone of this name, for root would use what its guest still
    /// reaches.
    #[must_use]
    pub fn claim(&mut self, zone: &str) -> bool {
        let free = !self.control.has_zone(zone);
        if free {
            self.made.remove(zone);
        }
        free
    }

    /// Records memory that was made for a zone.
    pub fn made(&mut self, zone: &str, blocks: &[u64]) {
        self.made.insert(zone.into(), blocks.into());
    }

    /// Executes a command of the worker.
    ///
    /// # Errors
    /// EL2 refused, or the command is for memory or a zone that the broker does not know.
    pub fn execute(&mut self, header: Header, payload: &[u8]) -> Result<Header, Refusal> {
        let op = Op::try_from(header.op).ok();
        let refused = |detail| Refusal {
            op,
            status: NOT_GRANTED,
            detail,
        };
        // The blocks that are given away by it.
        let mut given = None;
        match op {
            Some(Op::ZoneCreate) => {
                let spec =
                    ZoneCreate::read_from_prefix(payload).map_err(|_| refused(payload.len() as u64))?;
                let name = text(&spec.0.name);
                if !is_zone_name(&name) || !self.made.contains_key(&name) || self.control.has_zone(&name) {
                    return Err(refused(0));
                }
            }
            Some(Op::ZoneDonate) => {
                let number = u8::try_from(header.zone).map_err(|_| refused(header.zone.into()))?;
                let name = self
                    .control
                    .zone_name(number)
                    .ok_or(refused(header.zone.into()))?;
                let made = self.made.get(&name).ok_or(refused(header.zone.into()))?;
                // EL2 takes as many as `args[1]` says.
                let count = usize::try_from(header.args[1]).map_err(|_| refused(header.args[1]))?;
                let (words, rest) = payload.as_chunks::<8>();
                if words.len() != count || !rest.is_empty() {
                    return Err(refused(header.args[1]));
                }
                let blocks: Vec<u64> = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
                if let Some(foreign) = blocks.iter().find(|block| !made.contains(block)) {
                    return Err(refused(*foreign));
                }
                given = Some((name, blocks));
            }
            Some(op) if op.serves() => return Err(refused(op as u64)),
            _ => {}
        }
        let done = self.control.command(header, payload, &mut [])?;
        if let Some((name, blocks)) = given
            && let Some(made) = self.made.get_mut(&name)
        {
            made.retain(|block| !blocks.contains(block));
        }
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ringvisor::abi::command::{Header, Op};
    use zerocopy::IntoBytes;

    use super::Custody;
    use crate::config::zone::BLOCK;
    use crate::hv::fake::FakeEl2;
    use crate::hv::{Hypervisor, NOT_GRANTED, Refusal};

    /// The worker's commands, as [`Hypervisor`]'s functions make them.
    struct Worker(parking_lot::Mutex<Custody>, Arc<FakeEl2>);

    impl Hypervisor for Worker {
        fn info(&self) -> ringvisor::abi::info::InfoPage {
            self.1.info()
        }

        fn execute(&self, header: Header, payload: &[u8], _: &mut [u8]) -> Result<Header, Refusal> {
            self.0.lock().execute(header, payload)
        }

        fn used_buffer(&self, _: u8, _: u8) {}

        fn console_input(&self, _: u8) {}

        fn bar_word(&self, _: usize) -> u64 {
            0
        }

        fn shared(&self) -> &crate::hv::SharedPage {
            self.1.shared()
        }
    }

    fn rig() -> (Worker, Arc<FakeEl2>) {
        let el2 = Arc::new(FakeEl2::new(4).unwrap());
        (Worker(Custody::new(el2.clone()).into(), el2.clone()), el2)
    }

    fn refusal(result: Result<impl Sized, Refusal>) -> u64 {
        let refusal = result.map(drop).unwrap_err();
        assert_eq!(refusal.status, NOT_GRANTED, "{refusal}");
        refusal.detail
    }

    // torture i2
    #[test]
    fn a_zone_gets_the_memory_that_was_made_for_it_once() {
        let (worker, el2) = rig();
        let hv: &dyn Hypervisor = &worker;
        let blocks: Vec<u64> = (10..20).map(|block| block * BLOCK).collect();
        worker.0.lock().made("a", &blocks);
        worker.0.lock().made("b", &[77 * BLOCK]);
        let number = hv.zone_create("a", &[1], 0).unwrap();
        // Another's, root's, and its own with root's behind it.
        for (wrong, named) in [
            (vec![77 * BLOCK], 77),
            (vec![5 * BLOCK], 5),
            (vec![10 * BLOCK, 11 * BLOCK, 21 * BLOCK], 21),
        ] {
            assert_eq!(refusal(hv.zone_donate(number, 0, &wrong)), named * BLOCK);
        }
        hv.zone_donate(number, 0, blocks.get(..5).unwrap()).unwrap();
        assert_eq!(
            refusal(hv.zone_donate(number, 0, &[blocks[4]])),
            blocks[4],
            "twice"
        );
        hv.zone_donate(number, 0, blocks.get(5..).unwrap()).unwrap();
        assert_eq!(el2.zones(), [number]);
        assert!(!worker.0.lock().claim("a") && worker.0.lock().claim("b"));
    }

    #[test]
    fn a_count_that_is_not_the_lists_is_refused() {
        let (worker, _) = rig();
        let hv: &dyn Hypervisor = &worker;
        worker.0.lock().made("a", &[BLOCK, 2 * BLOCK]);
        let number = hv.zone_create("a", &[1], 0).unwrap();
        let donate = |count| Header {
            op: Op::ZoneDonate as u32,
            zone: number.into(),
            args: [0, count, 0, 0],
            ..Header::default()
        };
        let list = [BLOCK, 2 * BLOCK];
        for count in [0, 1, 3, u64::MAX] {
            assert_eq!(
                refusal(worker.execute(donate(count), list.as_bytes(), &mut [])),
                count
            );
        }
        worker.execute(donate(2), list.as_bytes(), &mut []).unwrap();
    }

    #[test]
    fn zones_without_memory_and_commands_of_the_other_page_are_refused() {
        let (worker, el2) = rig();
        let hv: &dyn Hypervisor = &worker;
        refusal(hv.zone_create("a", &[1], 0));
        worker.0.lock().made("a", &[BLOCK]);
        refusal(hv.zone_create("../a", &[1], 0));
        let number = hv.zone_create("a", &[1], 0).unwrap();
        refusal(hv.zone_create("a", &[2], 0));
        refusal(hv.zone_info(number));
        refusal(hv.device_state(number, 0));
        hv.zone_destroy(number).unwrap();
        assert!(el2.zones().is_empty());
        // Memory that was removed is not given away any more.
        assert!(worker.0.lock().claim("a"));
        refusal(hv.zone_create("a", &[1], 0));
    }
}
