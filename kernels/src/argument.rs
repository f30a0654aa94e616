//! Arguments of kernels: optional buffers, and checks of what a launch is given.

use cubecl_core::client::Client;
use cubecl_core::prelude::{
    BufferArg, BufferCompilationArg, ComptimeOptionCompilationArg, LaunchArg,
};

use crate::error::{Error, Result};
use crate::hip::emit::buffer;

/// Checks that a buffer holds `expected` elements, or that there is none where `expected` is `None`.
pub(crate) fn holds(
    operation: &'static str,
    name: &str,
    buffer: Option<&BufferArg>,
    expected: Option<usize>,
) -> Result<()> {
    let remedy = "give the buffers of the problem that the plan was chosen for";
    match (buffer.map(BufferArg::len), expected) {
        (found, expected) if found == expected => Ok(()),
        (None, Some(expected)) => {
            let problem = format!("{name} of {expected} elements is missing");
            Err(Error::argument(operation, problem, remedy))
        }
        (Some(found), None) => {
            let problem = format!("{name} of {found} elements, which the plan does not take");
            Err(Error::argument(operation, problem, remedy))
        }
        (found, expected) => {
            let (found, expected) = (found.unwrap_or(0), expected.unwrap_or(0));
            let problem = format!("{name} has {found} elements, expected {expected}");
            Err(Error::argument(operation, problem, remedy))
        }
    }
}

/// The same buffer once more.
pub(crate) fn again(buffer: &BufferArg) -> BufferArg {
    match buffer {
        // SAFETY: the length is the one that the caller declared of this very handle.
        BufferArg::Handle { handle } => unsafe {
            BufferArg::from_raw_parts_binding(handle.handle.clone(), buffer.len())
        },
        BufferArg::Alias { input_pos, .. } => BufferArg::alias(*input_pos, buffer.len()),
    }
}

/// A buffer as long as another, of elements of `bytes` bytes: what is written to it is lost.
pub(crate) fn scratch(client: &Client, like: &BufferArg, bytes: usize) -> BufferArg {
    let length = like.len();
    // SAFETY: the handle was made for this length.
    unsafe { BufferArg::from_raw_parts(client.empty(length * bytes), length) }
}

/// `count` elements as the 32-bit number with which kernels compute places.
pub(crate) fn places(operation: &'static str, count: usize) -> Result<u32> {
    u32::try_from(count).map_err(|_| {
        let problem = format!("{count} elements, but places are 32-bit numbers");
        Error::argument(
            operation,
            problem,
            "split the tensor along its first dimension",
        )
    })
}

/// A buffer that a kernel takes only if it is `present`.
pub(crate) fn optional_buffer<T>(present: bool) -> ComptimeOptionCompilationArg<T>
where
    T: LaunchArg<CompilationArg = BufferCompilationArg>,
{
    match present {
        true => ComptimeOptionCompilationArg::Some(buffer()),
        false => ComptimeOptionCompilationArg::None,
    }
}
