//! Arithmetic and slicing of buffers. Reductions add in the order of the buffers, whatever the timing.

use std::ops::Range;
use std::sync::Arc;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::comm::{Buffer, Reduction};
use crate::error::{Error, Result};

/// Elements that are reduced at a time: all operands of a block stay in the first-level cache.
const BLOCK: usize = 1024;

/// What a [`Buffer`] can hold.
trait Element: Copy + PartialOrd {
    /// The elements, if they are of this type.
    fn view(buffer: &Buffer) -> Option<&[Self]>;
    /// The elements, if they are of this type.
    fn view_mut(buffer: &mut Buffer) -> Option<&mut [Self]>;
    /// A buffer of this type.
    fn wrap(elements: Vec<Self>) -> Buffer;
}

macro_rules! element {
    ($($type:ty => $variant:ident),*) => {$(
        impl Element for $type {
            fn view(buffer: &Buffer) -> Option<&[Self]> {
                match buffer {
                    Buffer::$variant(elements) => Some(elements),
                    _ => None,
                }
            }
            fn view_mut(buffer: &mut Buffer) -> Option<&mut [Self]> {
                match buffer {
                    Buffer::$variant(elements) => Some(elements),
                    _ => None,
                }
            }
            fn wrap(elements: Vec<Self>) -> Buffer {
                Buffer::$variant(elements)
            }
        }
    )*};
}
element!(f32 => F32, f64 => F64, f16 => F16, bf16 => BF16, i64 => I64, u8 => U8);

/// Calls a function that is generic over [`Element`] with the type inside `$buffer`.
macro_rules! dispatch {
    ($buffer:expr, $function:ident($($argument:expr),*)) => {
        match $buffer {
            Buffer::F32(_) => $function::<f32>($($argument),*),
            Buffer::F64(_) => $function::<f64>($($argument),*),
            Buffer::F16(_) => $function::<f16>($($argument),*),
            Buffer::BF16(_) => $function::<bf16>($($argument),*),
            Buffer::I64(_) => $function::<i64>($($argument),*),
            Buffer::U8(_) => $function::<u8>($($argument),*),
        }
    };
}

/// The elements `range` of all buffers, combined one by one in the buffers' order. Half types are summed in f32 and
/// rounded once; sums of i64 wrap; a NaN stays in a maximum.
///
/// # Errors
/// Buffers of different types, or sums of bytes: the caller has excluded both.
pub(super) fn reduce(
    parts: &[Arc<Buffer>],
    range: Range<usize>,
    reduction: Reduction,
) -> Result<Buffer> {
    match (first(parts)?, reduction) {
        (Buffer::F32(_), Reduction::Sum) => fold::<f32>(parts, range, |a, b| a + b),
        (Buffer::F64(_), Reduction::Sum) => fold::<f64>(parts, range, |a, b| a + b),
        (Buffer::F16(_), Reduction::Sum) => sum_half::<f16>(parts, range),
        (Buffer::BF16(_), Reduction::Sum) => sum_half::<bf16>(parts, range),
        (Buffer::I64(_), Reduction::Sum) => fold(parts, range, i64::wrapping_add),
        (Buffer::U8(_), Reduction::Sum) => Err(Error::Internal("a sum of bytes".into())),
        (typed, Reduction::Max) => dispatch!(typed, max(parts, range)),
    }
}

/// The elements `range` of every buffer, one buffer after the other.
///
/// # Errors
/// Buffers of different types: the caller has excluded them.
pub(super) fn concat(
    parts: &[Arc<Buffer>],
    range: impl Fn(&Buffer) -> Range<usize>,
) -> Result<Buffer> {
    dispatch!(first(parts)?, concat_typed(parts, &range))
}

/// Replaces the elements of `out` by those of the buffers, one buffer after the other.
///
/// # Errors
/// Buffers of different types, or another number of elements in all: the caller has excluded both.
pub(super) fn overwrite(out: &mut Buffer, parts: &[Arc<Buffer>]) -> Result<()> {
    dispatch!(first(parts)?, overwrite_typed(out, parts))
}

fn first(parts: &[Arc<Buffer>]) -> Result<&Buffer> {
    parts
        .first()
        .map(|part| &**part)
        .ok_or_else(|| Error::Internal("a group without members".into()))
}

fn mixed() -> Error {
    Error::Internal("members of a group passed buffers that do not fit together".into())
}

fn views<T: Element>(parts: &[Arc<Buffer>]) -> Result<Vec<&[T]>> {
    parts
        .iter()
        .map(|part| T::view(part).ok_or_else(mixed))
        .collect()
}

/// Ranges of at most [`BLOCK`] elements that make up `range`.
fn blocks(range: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    range
        .step_by(BLOCK)
        .map(move |start| start..end.min(start + BLOCK))
}

fn fold<T: Element>(
    parts: &[Arc<Buffer>],
    range: Range<usize>,
    combine: impl Fn(T, T) -> T,
) -> Result<Buffer> {
    let views = views::<T>(parts)?;
    let mut out = Vec::with_capacity(range.len());
    for block in blocks(range) {
        let begin = out.len();
        for (i, view) in views.iter().enumerate() {
            let terms = view.get(block.clone()).ok_or_else(mixed)?;
            if i == 0 {
                out.extend_from_slice(terms);
            } else {
                for (sum, term) in out[begin..].iter_mut().zip(terms) {
                    *sum = combine(*sum, *term);
                }
            }
        }
    }
    Ok(T::wrap(out))
}

fn max<T: Element>(parts: &[Arc<Buffer>], range: Range<usize>) -> Result<Buffer> {
    fold::<T>(parts, range, |a, b| {
        let a_is_nan = a.partial_cmp(&a).is_none();
        if a >= b || a_is_nan { a } else { b }
    })
}

fn sum_half<T: Element>(parts: &[Arc<Buffer>], range: Range<usize>) -> Result<Buffer>
where
    [T]: HalfFloatSliceExt,
{
    let views = views::<T>(parts)?;
    let mut out = Vec::with_capacity(range.len());
    let (mut sums, mut terms) = ([0.0f32; BLOCK], [0.0f32; BLOCK]);
    for block in blocks(range) {
        let (sums, terms) = (&mut sums[..block.len()], &mut terms[..block.len()]);
        let begin = out.len();
        for (i, view) in views.iter().enumerate() {
            let halves = view.get(block.clone()).ok_or_else(mixed)?;
            if i == 0 {
                // Also makes room for the result, which replaces it below.
                out.extend_from_slice(halves);
                halves.convert_to_f32_slice(sums);
            } else {
                halves.convert_to_f32_slice(terms);
                sums.iter_mut()
                    .zip(&*terms)
                    .for_each(|(sum, term)| *sum += term);
            }
        }
        out[begin..].convert_from_f32_slice(sums);
    }
    Ok(T::wrap(out))
}

fn concat_typed<T: Element>(
    parts: &[Arc<Buffer>],
    range: &impl Fn(&Buffer) -> Range<usize>,
) -> Result<Buffer> {
    let count = parts.iter().map(|part| range(part).len()).sum();
    let mut out = Vec::with_capacity(count);
    for (part, view) in parts.iter().zip(views::<T>(parts)?) {
        out.extend_from_slice(view.get(range(part)).ok_or_else(mixed)?);
    }
    Ok(T::wrap(out))
}

fn overwrite_typed<T: Element>(out: &mut Buffer, parts: &[Arc<Buffer>]) -> Result<()> {
    let mut rest = T::view_mut(out).ok_or_else(mixed)?;
    for view in views::<T>(parts)? {
        let (piece, tail) = rest.split_at_mut_checked(view.len()).ok_or_else(mixed)?;
        piece.copy_from_slice(view);
        rest = tail;
    }
    if rest.is_empty() {
        Ok(())
    } else {
        Err(mixed())
    }
}
