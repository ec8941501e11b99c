//! The fuzz targets on their corpora and on mutations of them, as part of `make test`. `make fuzz` runs them
//! under libFuzzer.
#![cfg(test)]

use std::path::Path;

use sim::fuzz::TARGETS;
use sim::rng::Rng;

/// Returns the inputs of a target's corpus.
fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../fuzz/corpus")
        .join(name);
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files.iter().map(|file| std::fs::read(file).unwrap()).collect()
}

/// Returns a random mutation of an input.
fn mutate(rng: &mut Rng, input: &[u8]) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..rng.range(1, 8) {
        let at = rng.index(bytes.len() + 1);
        match rng.below(5) {
            0 => bytes.insert(at, rng.draw() as u8),
            1 => bytes.truncate(at),
            2 => {
                let copy: Vec<u8> = bytes[at..].iter().copied().take(rng.index(32)).collect();
                bytes.extend(copy);
            }
            3 => bytes.extend(rng.draw().to_le_bytes()),
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = if rng.chance(500) {
                        rng.draw() as u8
                    } else {
                        *byte ^ 1 << rng.below(8)
                    };
                }
            }
        }
    }
    bytes
}

#[test]
fn corpora_and_mutated_inputs() {
    for (name, target) in TARGETS {
        let inputs = corpus(name);
        assert!(!inputs.is_empty(), "no corpus for {name}");
        inputs.iter().for_each(|input| target(input));
        let mut rng = Rng::new(name.len() as u64);
        let mut input = Vec::new();
        for round in 0..300 {
            // Chains of mutations, each from an input of the corpus or from random bytes.
            if round % 20 == 0 {
                input = match rng.index(inputs.len() + 1) {
                    index if index < inputs.len() => inputs[index].clone(),
                    _ => (0..rng.below(200)).map(|_| rng.draw() as u8).collect(),
                };
            }
            input = mutate(&mut rng, &input);
            target(&input);
        }
    }
}
