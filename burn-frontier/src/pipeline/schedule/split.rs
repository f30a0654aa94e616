//! Which layers make up which model part.

use std::ops::Range;

use crate::error::{Error, Result};

/// Splits `layers` layers into `parts` consecutive ranges whose lengths differ by one at most.
///
/// Longer ranges lie together from the second part on: the last part also has the head, the first the embedding and,
/// under 1F1B, the most activations alive. The last is never longer than another; the first is only when all but the
/// last are.
///
/// # Errors
/// No parts, or more parts than layers.
pub fn split_layers(layers: usize, parts: usize) -> Result<Vec<Range<usize>>> {
    if parts == 0 || parts > layers {
        return Err(Error::config(
            format!("{layers} layers cannot be split into {parts} pipeline parts"),
            format!(
                "use 1 to {layers} parts (stages x chunks), so that each has at least one layer"
            ),
        ));
    }
    let extra = layers % parts;
    let first_longer = usize::from(extra + 1 < parts);
    let longer = first_longer..first_longer + extra;
    let counts: Vec<_> = (0..parts)
        .map(|part| layers / parts + usize::from(longer.contains(&part)))
        .collect();
    Ok(ranges(&counts))
}

/// Splits `layers` layers into `parts` consecutive ranges of the lengths that `counts` gives.
///
/// # Errors
/// Another number of counts than parts, a count of zero, or counts that do not add up to `layers`.
pub fn split_layers_by(layers: usize, parts: usize, counts: &[usize]) -> Result<Vec<Range<usize>>> {
    let sum = counts
        .iter()
        .try_fold(0_usize, |sum, &count| sum.checked_add(count));
    if counts.len() != parts || counts.contains(&0) || sum != Some(layers) {
        return Err(Error::config(
            format!(
                "the layer counts {counts:?} do not split {layers} layers into {parts} pipeline parts"
            ),
            format!("give {parts} counts (stages x chunks) of at least 1 whose sum is {layers}"),
        ));
    }
    Ok(ranges(counts))
}

fn ranges(counts: &[usize]) -> Vec<Range<usize>> {
    let starts = counts.iter().scan(0, |next, count| {
        let start = *next;
        *next += count;
        Some(start)
    });
    starts
        .zip(counts)
        .map(|(start, count)| start..start + count)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_that_do_not_divide_go_to_the_parts_between_the_ends() {
        let lengths = |layers, parts| {
            let split = split_layers(layers, parts).unwrap();
            split.iter().map(ExactSizeIterator::len).collect::<Vec<_>>()
        };
        assert_eq!(lengths(8, 4), [2, 2, 2, 2]);
        assert_eq!(lengths(9, 4), [2, 3, 2, 2]);
        assert_eq!(lengths(10, 4), [2, 3, 3, 2]);
        assert_eq!(lengths(11, 4), [3, 3, 3, 2]);
        assert_eq!(lengths(5, 1), [5]);
        for (layers, parts) in (1..=12).flat_map(|layers| (1..=layers).map(move |p| (layers, p))) {
            let split = split_layers(layers, parts).unwrap();
            assert_eq!(
                split.iter().cloned().flatten().collect::<Vec<_>>(),
                (0..layers).collect::<Vec<_>>()
            );
            assert!(
                split
                    .iter()
                    .all(|part| part.len() >= split[parts - 1].len())
            );
        }
        let error = split_layers(3, 4).unwrap_err().to_string();
        for part in ["3 layers", "4 pipeline parts", "use 1 to 3 parts"] {
            assert!(error.contains(part), "{error}");
        }
        assert!(split_layers(3, 0).is_err());
    }

    #[test]
    fn layer_counts_given_by_hand_must_fit() {
        assert_eq!(
            split_layers_by(6, 3, &[1, 3, 2]).unwrap(),
            [0..1, 1..4, 4..6]
        );
        for counts in [&[1, 3, 1][..], &[3, 3], &[0, 3, 3], &[usize::MAX, 1, 6]] {
            let error = split_layers_by(6, 3, counts).unwrap_err().to_string();
            for part in ["give 3 counts", "sum is 6"] {
                assert!(error.contains(part), "{error}");
            }
        }
    }
}
