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
    let ranges = (0..parts).scan(0, |start, part| {
        let range = *start..*start + layers / parts + usize::from(longer.contains(&part));
        *start = range.end;
        Some(range)
    });
    Ok(ranges.collect())
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
}
