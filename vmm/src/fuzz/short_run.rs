//! The short run of a fuzz target, for ordinary tests: its kept corpus, and a fixed number of random and mutated inputs, the
//! same each time. Whole by itself, so that the tests of other crates can include it as a file.

use std::path::Path;

/// Inputs of bytes without a model, and of kept inputs with something changed.
const RANDOM_INPUTS: u64 = 60;
const MUTATED_INPUTS: u64 = 240;
const RANDOM_BYTES_MAX: u64 = 2048;
/// A mutated input grows to this at most.
const MUTATED_BYTES_MAX: usize = 16 << 10;
const CHANGES_MAX: u64 = 6;
/// Numbers at the edges of what parsers count with.
const EDGES: [u64; 10] = [0, 1, 0x7f, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff, 1 << 63, u64::MAX];

/// Gives `body` each file of the folder `corpus`, and then what is made from seeds; a panic tells which input it was.
pub(crate) fn run(corpus: &Path, body: fn(&[u8])) {
    let kept = read(corpus);
    assert!(!kept.is_empty(), "{} keeps no inputs", corpus.display());
    for (name, input) in &kept {
        give(body, input, format!("the kept {name}"));
    }
    for seed in 0..RANDOM_INPUTS {
        give(body, &random(seed), format!("random, of seed {seed}"));
    }
    for seed in 0..MUTATED_INPUTS {
        give(body, &mutated(&kept, seed), format!("mutated, of seed {seed}"));
    }
}

/// The files of a corpus, by name, so that a seed means the same everywhere.
fn read(corpus: &Path) -> Vec<(String, Vec<u8>)> {
    let files = std::fs::read_dir(corpus).unwrap_or_else(|error| panic!("{}: {error}", corpus.display()));
    let mut kept: Vec<_> = files
        .map(|file| file.expect("a corpus can be listed"))
        .map(|file| (file.file_name().to_string_lossy().into_owned(), std::fs::read(file.path()).expect("a kept input can be read")))
        .collect();
    kept.sort();
    kept
}

fn give(body: fn(&[u8]), input: &[u8], origin: String) {
    let _told = Told(origin);
    body(input);
}

/// Says on a panic what the input was.
struct Told(String);

impl Drop for Told {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the input was {}", self.0);
        }
    }
}

fn random(seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    let len = random.below(RANDOM_BYTES_MAX);
    // Mostly small numbers: they mean something more often.
    (0..len).map(|_| if random.below(10) < 7 { random.below(16) as u8 } else { random.next() as u8 }).collect()
}

fn mutated(kept: &[(String, Vec<u8>)], seed: u64) -> Vec<u8> {
    let mut random = Random(!seed);
    let pick = |random: &mut Random| &kept[random.below(kept.len() as u64) as usize].1;
    let mut bytes = pick(&mut random).clone();
    for _ in 0..=random.below(CHANGES_MAX) {
        let at = random.below(bytes.len() as u64 + 1) as usize;
        let end = (at + random.below(32) as usize).min(bytes.len());
        match random.below(6) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 if at < bytes.len() => bytes[at] = random.next() as u8,
            2 => drop(bytes.drain(at..end)),
            3 => {
                let again = bytes[at..end].to_vec();
                bytes.splice(at..at, again);
            }
            4 => {
                let edge = EDGES[random.below(EDGES.len() as u64) as usize];
                let width = 1 << random.below(4);
                // As a parser of text meets it, or of bytes.
                let number = if random.below(2) == 0 { edge.to_string().into_bytes() } else { edge.to_le_bytes()[..width].to_vec() };
                let over = (at + number.len()).min(bytes.len());
                bytes.splice(at..over, number);
            }
            _ => {
                let other = pick(&mut random);
                let from = random.below(other.len() as u64 + 1) as usize;
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
        }
        bytes.truncate(MUTATED_BYTES_MAX);
    }
    bytes
}

/// SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// Below `limit`, or zero.
    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }
}
