//! Splits, permutations, and the order of samples.

use std::collections::{BTreeSet, HashMap};

use burn_frontier::data::permutation::Permutation;
use burn_frontier::data::{Dataset, Sampler, SamplerConfig, unigram_loss};
use burn_frontier::error::Error;
use tempfile::TempDir;

use crate::{contents, write_documents};

/// Documents of distinct tokens, some of them empty, so that every sample says where it is from.
fn distinct(lengths: &[u32]) -> (Vec<Vec<u32>>, Dataset) {
    let mut next = 0..;
    let documents: Vec<Vec<u32>> = lengths
        .iter()
        .map(|&length| next.by_ref().take(length as usize).collect())
        .collect();
    let dataset = Dataset::from_documents(documents.iter().cloned().map(Ok)).unwrap();
    (documents, dataset)
}

fn sampler(dataset: &Dataset, sequence: usize, seed: u64) -> Sampler {
    let vocabulary = dataset.tokens() as usize;
    SamplerConfig {
        sequence,
        vocabulary,
        seed,
    }
    .init(dataset)
    .unwrap()
}

const LENGTHS: [u32; 12] = [5, 0, 17, 1, 0, 0, 40, 3, 8, 2, 0, 23];

#[test]
fn a_permutation_hits_every_element_once() {
    for len in (1..=70).chain([255, 256, 257, 1000, 4096, 10_007]) {
        let permutation = Permutation::new(len, [7, len, 0]);
        let images: BTreeSet<u64> = (0..len).map(|i| permutation.at(i)).collect();
        assert!(images.iter().copied().eq(0..len), "of {len}");
    }
    let still = (0..10_000)
        .filter(|&i| Permutation::new(10_000, [1, 0, 0]).at(i) == i)
        .count();
    assert!(still < 20, "{still} elements stay; 1 is expected");
    assert_eq!(Permutation::new(u64::MAX, [1, 2, 3]).at(u64::MAX), u64::MAX);
    assert!(Permutation::new(u64::MAX, [1, 2, 3]).at(5) < u64::MAX);
}

#[test]
fn small_permutations_are_close_to_uniform() {
    let mut seen: HashMap<Vec<u64>, u32> = HashMap::new();
    for key in 0..24_000 {
        let permutation = Permutation::new(4, [key, 0, 0]);
        *seen
            .entry((0..4).map(|i| permutation.at(i)).collect())
            .or_default() += 1;
    }
    // A Feistel network over 4 elements has even permutations only if its rounds are; all 24 must occur.
    assert_eq!(seen.len(), 24, "{seen:?}");
    assert!(
        seen.values().all(|&count| (700..1300).contains(&count)),
        "{seen:?}"
    );
}

#[test]
fn packed_samples_concatenate_to_the_shuffled_corpus_in_every_epoch() {
    let (documents, dataset) = distinct(&LENGTHS);
    let sequence = 4;
    let sampler = sampler(&dataset, sequence, 3);
    assert_eq!(sampler.len(), (99 - 1) / 4);
    let mut orders = BTreeSet::new();
    for epoch in 0..3 {
        let samples: Vec<_> = (0..sampler.len())
            .map(|i| sampler.sample(epoch * sampler.len() + i).unwrap())
            .collect();
        assert!(samples.iter().all(|sample| sample.len() == sequence + 1));
        let unshuffled = samples
            .windows(2)
            .filter(|pair| pair[0][sequence] == pair[1][0]);
        assert!(
            unshuffled.count() < 8,
            "samples come in the order of the row"
        );
        // A sample's last token is the first of the next one in the row.
        let by_first: HashMap<u32, &Vec<u32>> =
            samples.iter().map(|sample| (sample[0], sample)).collect();
        let lasts: BTreeSet<u32> = samples.iter().map(|sample| sample[sequence]).collect();
        assert_eq!(by_first.len(), samples.len(), "a sample came twice");
        let mut at = *by_first
            .keys()
            .find(|first| !lasts.contains(first))
            .unwrap();
        let mut row = vec![at];
        while let Some(sample) = by_first.get(&at) {
            row.extend(&sample[1..]);
            at = sample[sequence];
        }
        assert_eq!(row.len(), 24 * sequence + 1);
        // The row is the documents, each whole, except where the epoch ends.
        let mut rest = row.as_slice();
        while let Some(&first) = rest.first() {
            let document = documents
                .iter()
                .find(|document| document.first() == Some(&first))
                .unwrap();
            let length = document.len().min(rest.len());
            assert_eq!(rest[..length], document[..length]);
            rest = &rest[length..];
        }
        orders.insert(row);
    }
    assert_eq!(
        orders.len(),
        3,
        "two epochs have the same order of documents"
    );
}

#[test]
fn a_sample_depends_on_seed_and_number_alone() {
    let (_, dataset) = distinct(&LENGTHS);
    let first = sampler(&dataset, 5, 11);
    let in_order: Vec<_> = (0..60).map(|i| first.sample(i).unwrap()).collect();
    // A fresh sampler, asked backwards across epochs, as after a restart.
    let again = sampler(&dataset, 5, 11);
    for i in (0..60).rev() {
        assert_eq!(again.sample(i).unwrap(), in_order[i as usize], "sample {i}");
    }
    let other = sampler(&dataset, 5, 12);
    assert!((0..60).any(|i| other.sample(i).unwrap() != in_order[i as usize]));
    let threads: Vec<_> = (0..4)
        .map(|rank| (rank, first.clone()))
        .map(|(rank, sampler)| std::thread::spawn(move || sampler.sample(rank * 15).unwrap()))
        .collect();
    for (rank, thread) in threads.into_iter().enumerate() {
        assert_eq!(thread.join().unwrap(), in_order[rank * 15]);
    }
    assert_eq!(first.sample(u64::MAX).unwrap().len(), 6);
}

#[test]
fn samples_of_a_file_are_those_of_memory() {
    let (documents, memory) = distinct(&LENGTHS);
    let folder = TempDir::new().unwrap();
    let prefix = folder.path().join("corpus");
    write_documents(&prefix, 99, &documents);
    let disk = Dataset::open(&prefix).unwrap();
    let (train, validation) = memory.split("8,4").unwrap();
    let (mapped, held_out) = disk.split("8,4").unwrap();
    for (a, b) in [(train, mapped), (validation, held_out)] {
        let (a, b) = (sampler(&a, 3, 5), sampler(&b, 3, 5));
        assert_eq!(a.len(), b.len());
        for i in 0..2 * a.len() {
            match (a.sample(i), b.sample(i)) {
                (Ok(a), Ok(b)) => assert_eq!(a, b),
                (a, b) => assert_eq!(a.unwrap_err().to_string(), b.unwrap_err().to_string()),
            }
        }
    }
}

#[test]
fn a_corpus_too_short_or_of_other_tokens_is_refused() {
    let (_, dataset) = distinct(&[4, 4]);
    let config = |sequence, vocabulary| SamplerConfig {
        sequence,
        vocabulary,
        seed: 0,
    };
    let error = config(8, 8).init(&dataset).unwrap_err().to_string();
    assert!(
        error.contains("8 tokens in 2 documents hold no sample of 8 + 1"),
        "{error}"
    );
    assert!(config(0, 8).init(&dataset).is_err());
    assert_eq!(config(7, 8).init(&dataset).unwrap().len(), 1);
    let error = config(7, 7)
        .init(&dataset)
        .unwrap()
        .sample(0)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("token 7, outside the vocabulary of 7"),
        "{error}"
    );
    assert!(config(1, 8).init(&distinct(&[]).1).is_err());
    let failing = Dataset::from_documents([Err(Error::config("no", "yes"))]);
    assert!(failing.is_err());
}

#[test]
fn a_split_has_no_overlap_and_loses_no_document() {
    let (documents, dataset) = distinct(&[3; 200]);
    for (weights, train, validation) in [
        ("99,1", 198, 2),
        (" 9 , 1 ", 180, 20),
        ("969,30,1", 194, 6 - 1),
        ("0.5,0.5", 100, 100),
        ("100,0", 200, 0),
    ] {
        let (a, b) = dataset.split(weights).unwrap();
        assert_eq!(
            (a.documents(), b.documents()),
            (train, validation),
            "{weights}"
        );
        assert_eq!(a.tokens() + b.tokens(), 3 * (train + validation) as u64);
        let both: Vec<_> = contents(&a).into_iter().chain(contents(&b)).collect();
        assert_eq!(both, documents[..train + validation], "{weights}");
        // A split of a split stays inside it.
        if let Ok((_, inner)) = b.split("1,1") {
            assert!(
                contents(&inner)
                    .iter()
                    .all(|document| contents(&b).contains(document))
            );
        }
    }
    for weights in [
        "", "99", "a,b", "-1,2", "0,0", "1,2,3,4", "inf,1", "nan,1", "99;1",
    ] {
        assert!(
            dataset
                .split(weights)
                .unwrap_err()
                .to_string()
                .contains("99,1"),
            "{weights}"
        );
    }
}

#[test]
fn few_documents_still_give_each_part_one() {
    for count in 2..12 {
        let (_, dataset) = distinct(&vec![1; count]);
        let (train, validation) = dataset.split("99,1").unwrap();
        assert_eq!((train.documents(), validation.documents()), (count - 1, 1));
        let (train, validation) = dataset.split("1,99").unwrap();
        assert_eq!((train.documents(), validation.documents()), (1, count - 1));
        if count > 2 {
            let (train, validation) = dataset.split("98,1,1").unwrap();
            assert_eq!((train.documents(), validation.documents()), (count - 2, 1));
        }
    }
    let error = distinct(&[100]).1.split("99,1").unwrap_err().to_string();
    assert!(
        error.contains("1 documents cannot be split into 2 parts"),
        "{error}"
    );
}

#[test]
fn the_unigram_baseline_is_the_entropy_of_the_counts() {
    let (_, dataset) = distinct(&[100, 100_000]);
    let counts = dataset.token_counts(100_100, 1_000).unwrap();
    assert_eq!(counts.iter().sum::<u64>(), 1_000);
    assert!(dataset.token_counts(100_099, u64::MAX).is_err());
    let uniform = vec![1_000_000; 8];
    assert!((unigram_loss(&uniform, &uniform) - 8_f64.ln()).abs() < 1e-9);
    // p = (3 + 1) / (4 + 2) and (1 + 1) / (4 + 2), each weighted by its counts.
    let expected = (3.0 * (1.5_f64).ln() + 3_f64.ln()) / 4.0;
    assert!((unigram_loss(&[3, 1], &[3, 1]) - expected).abs() < 1e-12);
    assert!((unigram_loss(&[0, 0], &[0, 5]) - 2_f64.ln()).abs() < 1e-12);
    assert_eq!(unigram_loss(&[], &[]), 0.0);
}
