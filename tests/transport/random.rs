//! Random histories: the transport and the model agree after every step, register by register.
//!
//! The seed is printed; `TRANSPORT_SEED=<number>` replays it, `TRANSPORT_CASES=<number>` sets the number of
//! histories.

// torture a1, a2, a5-a8, a10, a11: offset 0-0x1ff, every width, every state.

use std::hash::{BuildHasher, Hasher, RandomState};

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use ringvisor::syndrome::Width;
use ringvisor::virtio::registers as reg;
use ringvisor::virtio::{Effect, Event};

use crate::bench::{ACKNOWLEDGE, Bench, DRIVER, DRIVER_OK, FEATURES, FEATURES_OK, RAM, block_spec};
use crate::model::{Expected, Model};

#[derive(Clone, Debug)]
enum Step {
    /// Any store.
    Store {
        offset: u16,
        width: Width,
        value: u64,
    },
    /// Makes a queue ready with these values.
    Queue {
        queue: u32,
        size: u32,
        areas: [u64; 3],
    },
    /// Initializes the device as a correct driver does, with these features.
    Activate {
        features: u64,
    },
    UsedBuffer,
    ConfigChanged {
        offset: u16,
        bytes: Vec<u8>,
    },
    NeedsReset,
    /// The daemon's answers; `wrong` is added to the generation.
    Quiesced {
        wrong: u64,
    },
    QueueQuiesced {
        queue: u32,
        wrong: u64,
    },
    PowerCycle,
}

const REGISTERS: [u16; 18] = [
    reg::DEVICE_FEATURES_SEL,
    reg::DRIVER_FEATURES,
    reg::DRIVER_FEATURES_SEL,
    reg::QUEUE_SEL,
    reg::QUEUE_NUM,
    reg::QUEUE_READY,
    reg::QUEUE_NOTIFY,
    reg::INTERRUPT_ACK,
    reg::STATUS,
    reg::QUEUE_DESC_LOW,
    reg::QUEUE_DESC_HIGH,
    reg::QUEUE_DRIVER_LOW,
    reg::QUEUE_DRIVER_HIGH,
    reg::QUEUE_DEVICE_LOW,
    reg::QUEUE_DEVICE_HIGH,
    reg::SHM_SEL,
    reg::QUEUE_RESET,
    reg::CONFIG + 32,
];

fn width() -> impl Strategy<Value = Width> {
    prop_oneof![
        6 => Just(Width::Word),
        1 => Just(Width::Byte),
        1 => Just(Width::Half),
        1 => Just(Width::Double),
    ]
}

fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => 0u64..16,
        2 => prop::sample::select(vec![0x40, 0x80, 0xff, 256, 0x4000_0000, 0x4000_8000, u64::MAX, 1 << 32]),
        1 => any::<u64>(),
    ]
}

fn area() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => (0u64..0x1000).prop_map(|page| 0x4000_0000 + page * 0x1000),
        1 => (0u64..0x30_0000).prop_map(|offset| 0x4000_0000 + offset),
        1 => (0u64..0x2000).prop_map(|back| u64::MAX - back),
        1 => any::<u64>(),
    ]
}

fn features() -> impl Strategy<Value = u64> {
    prop_oneof![
        6 => any::<u64>().prop_map(|bits| bits & FEATURES | 1 << 32),
        1 => any::<u64>().prop_map(|bits| bits & FEATURES),
        1 => any::<u64>(),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let wrong = || prop_oneof![6 => Just(0u64), 1 => any::<u64>()];
    let store = (prop::sample::select(&REGISTERS[..]), width(), value())
        .prop_map(|(offset, width, value)| Step::Store { offset, width, value });
    let word = (prop::sample::select(&REGISTERS[..]), value()).prop_map(|(offset, value)| Step::Store {
        offset,
        width: Width::Word,
        value,
    });
    let control = (
        prop::sample::select(vec![reg::STATUS, reg::QUEUE_READY, reg::QUEUE_RESET]),
        0u64..2,
    )
        .prop_map(|(offset, value)| Step::Store {
            offset,
            width: Width::Word,
            value,
        });
    let wild = (0u16..0x210, width(), value()).prop_map(|(offset, width, value)| Step::Store {
        offset,
        width,
        value,
    });
    let queue = (
        0u32..3,
        prop::sample::select(vec![1u32, 2, 8, 8, 256, 3, 0, 512]),
        area(),
        area(),
        area(),
    )
        .prop_map(|(queue, size, a, b, c)| Step::Queue {
            queue,
            size,
            areas: [a, b, c],
        });
    let notify = (0u64..3).prop_map(|value| Step::Store {
        offset: reg::QUEUE_NOTIFY,
        width: Width::Word,
        value,
    });
    let writeback = (0u64..3).prop_map(|value| Step::Store {
        offset: reg::CONFIG + 32,
        width: Width::Byte,
        value,
    });
    prop_oneof![
        6 => notify,
        4 => writeback,
        6 => store,
        12 => word,
        8 => control,
        6 => wild,
        6 => queue,
        5 => features().prop_map(|features| Step::Activate { features }),
        4 => Just(Step::UsedBuffer),
        2 => (0u16..70, prop::collection::vec(any::<u8>(), 0..9))
            .prop_map(|(offset, bytes)| Step::ConfigChanged { offset, bytes }),
        1 => Just(Step::NeedsReset),
        6 => wrong().prop_map(|wrong| Step::Quiesced { wrong }),
        6 => (0u32..3, wrong()).prop_map(|(queue, wrong)| Step::QueueQuiesced { queue, wrong }),
        1 => Just(Step::PowerCycle),
    ]
}

struct Pair {
    bench: Bench,
    model: Model,
    /// How often each event was reached, to show that the test is not empty.
    reached: [u64; 5],
}

impl Pair {
    fn new() -> Self {
        Self {
            bench: Bench::new(),
            model: Model::new(&block_spec(), RAM.0),
            reached: [0; 5],
        }
    }

    fn store(&mut self, offset: u16, width: Width, value: u64) {
        let line = self.model.line();
        let expected = self.model.store(offset.into(), width.bytes(), value);
        let effect = self.bench.store_width(offset, width, value);
        match effect.event {
            Some(Event::Notify { .. }) => self.reached[0] += 1,
            Some(Event::Reset { .. }) => self.reached[1] += 1,
            Some(Event::QueueStop { .. }) => self.reached[2] += 1,
            Some(Event::ConfigWrite { .. }) => self.reached[3] += 1,
            Some(Event::NeedsReset) => self.reached[4] += 1,
            _ => {}
        }
        let event = effect.event.map(|event| match event {
            Event::Notify { queue } => format!("notify {queue}"),
            Event::Activated => "active".into(),
            Event::Reset { generation } => format!("reset {generation}"),
            Event::QueueReady { queue } => format!("ready {queue}"),
            Event::QueueStop { queue } => format!("stop {queue}"),
            Event::ConfigWrite { offset, value } => format!("config {offset} {value}"),
            Event::EmergencyWrite { byte } => format!("emergency {byte}"),
            Event::NeedsReset => "needs reset".into(),
        });
        assert_eq!(
            Expected {
                retry: effect.retry,
                event
            },
            expected,
            "{offset:#x} {width:?} {value:#x}"
        );
        self.check_line(line, effect);
    }

    fn check_line(&self, before: bool, effect: Effect) {
        let now = self.model.line();
        assert_eq!(effect.line, (now != before).then_some(now));
    }

    fn word(&mut self, offset: u16, value: u32) {
        self.store(offset, Width::Word, value.into());
    }

    fn queue(&mut self, queue: u32, size: u32, areas: [u64; 3]) {
        self.word(reg::QUEUE_SEL, queue);
        self.word(reg::QUEUE_NUM, size);
        for (low, address) in [reg::QUEUE_DESC_LOW, reg::QUEUE_DRIVER_LOW, reg::QUEUE_DEVICE_LOW]
            .into_iter()
            .zip(areas)
        {
            self.word(low, address as u32);
            self.word(low + 4, (address >> 32) as u32);
        }
        self.word(reg::QUEUE_READY, 1);
    }

    fn apply(&mut self, step: &Step) {
        let line = self.model.line();
        let Bench { transport, page } = &mut self.bench;
        match *step {
            Step::Store { offset, width, value } => self.store(offset, width, value),
            Step::Queue { queue, size, areas } => self.queue(queue, size, areas),
            Step::Activate { features } => {
                self.word(reg::STATUS, 0);
                self.apply(&Step::Quiesced { wrong: 0 });
                self.word(reg::STATUS, 0);
                self.word(reg::STATUS, ACKNOWLEDGE);
                self.word(reg::STATUS, ACKNOWLEDGE | DRIVER);
                for sel in [0, 1] {
                    self.word(reg::DRIVER_FEATURES_SEL, sel);
                    self.word(reg::DRIVER_FEATURES, (features >> (32 * sel)) as u32);
                }
                self.word(reg::STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
                self.queue(0, 8, Bench::areas(0));
                self.word(reg::STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
            }
            Step::UsedBuffer => {
                self.model.used_buffer();
                let effect = transport.used_buffer(page);
                self.check_line(line, effect);
            }
            Step::ConfigChanged { offset, ref bytes } => {
                let taken = self.model.config_changed(offset.into(), bytes);
                let effect = transport.config_changed(offset, bytes, page);
                assert_eq!(effect.is_ok(), taken);
                self.check_line(line, effect.unwrap_or_default());
            }
            Step::NeedsReset => {
                self.model.needs_reset();
                let effect = transport.needs_reset(page);
                self.check_line(line, effect);
            }
            Step::Quiesced { wrong } => {
                let generation = self.model.resets().wrapping_add(wrong);
                let taken = self.model.quiesced(generation);
                assert_eq!(transport.quiesced(generation, page).is_ok(), taken);
            }
            Step::QueueQuiesced { queue, wrong } => {
                let generation = self.model.resets().wrapping_add(wrong);
                let taken = self.model.queue_quiesced(queue as usize, generation);
                assert_eq!(transport.queue_quiesced(queue, generation, page).is_ok(), taken);
            }
            Step::PowerCycle => {
                self.model.power_cycle();
                let effect = transport.power_cycle(page);
                self.check_line(line, effect);
            }
        }
        self.compare();
    }

    /// Compares every register, the line, and the daemon's view.
    fn compare(&self) {
        for (index, word) in self.bench.page.dump().into_iter().enumerate() {
            let offset = index as u64 * 4;
            assert_eq!(word, self.model.read(offset), "register {offset:#x}");
        }
        assert_eq!(self.bench.transport.line(), self.model.line());
        self.model.check_daemon_view(&self.bench.state());
    }
}

/// Returns a number from the environment.
fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| {
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text} is no number"))
    })
}

#[test]
#[cfg_attr(miri, ignore = "random; too slow there")]
fn random_histories_equal_the_model() {
    let seed = number("TRANSPORT_SEED").unwrap_or_else(|| RandomState::new().build_hasher().finish());
    let cases = number("TRANSPORT_CASES").unwrap_or(400);
    println!("replay with TRANSPORT_SEED={seed}");
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config {
        cases: cases.try_into().unwrap(),
        failure_persistence: None,
        ..Config::default()
    };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let reached = std::cell::Cell::new([0; 5]);
    let effect = runner.run(&prop::collection::vec(step(), 1..120), |steps| {
        let mut pair = Pair::new();
        pair.compare();
        for step in &steps {
            pair.apply(step);
        }
        let sum = reached.get();
        reached.set(std::array::from_fn(|index| sum[index] + pair.reached[index]));
        Ok(())
    });
    if let Err(error) = effect {
        panic!("TRANSPORT_SEED={seed}: {error}");
    }
    println!(
        "notified, reset, stopped, configured, failed: {:?}",
        reached.get()
    );
    assert!(
        reached.get().iter().all(|&count| count >= cases / 40),
        "{:?}",
        reached.get()
    );
}

/// Every offset, width and a few values, in every stage of a device's life.
#[test]
#[cfg_attr(miri, ignore = "exhaustive; too slow there")]
fn every_store_in_every_stage_equals_the_model() {
    let stages: [&[Step]; 7] = [
        &[],
        &[Step::Store {
            offset: reg::STATUS,
            width: Width::Word,
            value: 3,
        }],
        &[Step::Activate { features: FEATURES }],
        &[Step::Activate { features: FEATURES }, Step::UsedBuffer],
        &[Step::Activate { features: FEATURES }, Step::NeedsReset],
        &[
            Step::Activate { features: FEATURES },
            Step::Store {
                offset: reg::QUEUE_READY,
                width: Width::Word,
                value: 0,
            },
        ],
        &[
            Step::Activate { features: FEATURES },
            Step::Store {
                offset: reg::STATUS,
                width: Width::Word,
                value: 0,
            },
            Step::Quiesced { wrong: 0 },
        ],
    ];
    for stage in stages {
        let mut start = Pair::new();
        stage.iter().for_each(|step| start.apply(step));
        for offset in 0..0x200 {
            for width in Width::ALL {
                for value in [0, 1, 2, 4, 8, 0xf, 0x80, 0x4000_0000, u64::MAX] {
                    let mut pair = Pair {
                        bench: Bench {
                            transport: start.bench.transport.clone(),
                            page: start.bench.page.clone(),
                        },
                        model: start.model.clone(),
                        reached: [0; 5],
                    };
                    pair.store(offset, width, value);
                    pair.compare();
                }
            }
        }
    }
}
