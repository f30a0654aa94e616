//! Numbers as the bytes of a buffer, and back.

use half::{bf16, f16};

use crate::error::{Error, Result};

/// A number that a buffer holds.
pub trait Plain: Copy {
    /// Size in bytes.
    const BYTES: usize;
    /// Appends the number's bytes.
    fn push(self, bytes: &mut Vec<u8>);
    /// The number of these [`Plain::BYTES`] bytes; `None` for another count.
    fn read(bytes: &[u8]) -> Option<Self>;
}

macro_rules! plain {
    ($($number:ty),*) => {$(
        impl Plain for $number {
            const BYTES: usize = size_of::<$number>();

            fn push(self, bytes: &mut Vec<u8>) {
                bytes.extend(self.to_ne_bytes());
            }

            fn read(bytes: &[u8]) -> Option<Self> {
                Some(Self::from_ne_bytes(bytes.try_into().ok()?))
            }
        }
    )*};
}
plain!(i8, u8, i32, u32, u64, f16, bf16, f32, f64);

/// The bytes of a buffer that holds `values`.
pub fn bytes<T: Plain>(values: &[T]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(values.len() * T::BYTES);
    for value in values {
        value.push(&mut bytes);
    }
    bytes
}

/// The numbers that a buffer holds.
///
/// # Errors
/// A size that is no multiple of the number's.
pub fn values<T: Plain>(buffer: &[u8]) -> Result<Vec<T>> {
    buffer
        .chunks(T::BYTES)
        .map(T::read)
        .collect::<Option<_>>()
        .ok_or_else(|| {
            Error::argument(
                "values",
                format!(
                    "{} bytes hold no whole number of {} bytes each",
                    buffer.len(),
                    T::BYTES
                ),
                "read the buffer as the type that the kernel writes",
            )
        })
}
