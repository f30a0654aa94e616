//! Arguments of kernels: optional buffers, and checks of what a launch is given.

use cubecl_core::client::Client;
use cubecl_core::prelude::{
    BufferArg, BufferCompilationArg, ComptimeOptionCompilationArg, CubeCount, LaunchArg,
};

use crate::device;
use crate::error::{Error, Result};
use crate::hip::emit::buffer;
use crate::matrix::instruction::Target;

/// The largest number of elements whose places kernels compute: a [`grid`](crate::rows::grid) may have some workgroups too many,
/// and their places do not begin again at 0.
const MOST: usize = (u32::MAX - (1 << 26)) as usize;

/// Bytes that the widest access of a kernel takes, and at a multiple of which every buffer begins.
const ALIGNMENT: u64 = 16;

/// Checks that a buffer holds `expected` elements of `bytes` bytes, or that there is none where `expected` is `None`.
pub(crate) fn holds(
    operation: &'static str,
    name: &str,
    buffer: Option<&BufferArg>,
    expected: Option<usize>,
    bytes: usize,
) -> Result<()> {
    let remedy = "give the buffers of the problem that the plan was chosen for";
    match (buffer, expected) {
        (None, None) => Ok(()),
        (None, Some(expected)) => {
            let problem = format!("{name} of {expected} elements is missing");
            Err(Error::argument(operation, problem, remedy))
        }
        (Some(found), None) => {
            let found = found.len();
            let problem = format!("{name} of {found} elements, which the plan does not take");
            Err(Error::argument(operation, problem, remedy))
        }
        (Some(buffer), Some(expected)) if buffer.len() == expected => {
            memory(operation, name, buffer, bytes)
        }
        (Some(buffer), Some(expected)) => {
            let problem = format!("{name} has {} elements, expected {expected}", buffer.len());
            Err(Error::argument(operation, problem, remedy))
        }
    }
}

/// Checks that a buffer is memory of its own with as many elements of `bytes` bytes as it was declared to have, which begins
/// where the widest access may.
pub(crate) fn memory(
    operation: &'static str,
    name: &str,
    buffer: &BufferArg,
    bytes: usize,
) -> Result<()> {
    let start = declared(operation, name, buffer, bytes)?;
    if start.is_multiple_of(ALIGNMENT) {
        return Ok(());
    }
    Err(Error::argument(
        operation,
        format!("{name} begins {start} bytes behind the start of its memory"),
        format!("let it begin at a multiple of {ALIGNMENT} bytes, or copy it"),
    ))
}

/// As [`memory`], but gives where the buffer begins, in bytes.
pub(crate) fn declared(
    operation: &'static str,
    name: &str,
    buffer: &BufferArg,
    bytes: usize,
) -> Result<u64> {
    let BufferArg::Handle { handle } = buffer else {
        return Err(Error::argument(
            operation,
            format!("{name} is an alias of another argument, whose length nothing vouches for"),
            "pass the buffer itself",
        ));
    };
    let binding = &handle.handle;
    let start = binding.offset_start.unwrap_or(0);
    let there = binding
        .size
        .checked_sub(start)
        .and_then(|rest| rest.checked_sub(binding.offset_end.unwrap_or(0)))
        .map_or(0, |there| there / bytes as u64);
    if buffer.len() as u64 > there {
        return Err(Error::argument(
            operation,
            format!(
                "{name} was declared to have {} elements, its memory has {there} of {bytes} bytes",
                buffer.len()
            ),
            "give a buffer of the element type that the plan was chosen for",
        ));
    }
    Ok(start)
}

/// The grid of a launch.
///
/// # Errors
/// More workgroups along a dimension than the device launches.
pub(crate) fn cubes(
    operation: &'static str,
    client: &Client,
    [x, y, z]: [u32; 3],
) -> Result<CubeCount> {
    let most = client.properties().hardware.max_cube_count;
    if x <= most.0 && y <= most.1 && z <= most.2 {
        return Ok(CubeCount::Static(x, y, z));
    }
    Err(Error::argument(
        operation,
        format!("a grid of {x} x {y} x {z} workgroups, the device launches {most:?} at most"),
        "split the tensor along its first dimension",
    ))
}

/// Checks that the kernels of `target` are those of the client's device.
pub(crate) fn runs_on(operation: &'static str, client: &Client, target: Target) -> Result<()> {
    let own = device::target(client);
    if target == own || target == Target::Portable {
        return Ok(());
    }
    Err(Error::argument(
        operation,
        format!("a plan for {target:?}, the device is {own:?}"),
        "choose the plan for the target of `device::choose`",
    ))
}

/// Memory in place of a buffer that a kernel does not read, or of an empty one, of which it may read the front in vain.
pub(crate) fn filler(client: &Client, elements: usize) -> BufferArg {
    // No element has more than four bytes, and no access more than 16.
    let bytes = (elements * 4).max(ALIGNMENT as usize);
    // SAFETY: the buffer has as many bytes, and more than elements.
    unsafe { BufferArg::from_raw_parts(client.empty(bytes), elements) }
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

/// Elements of a tensor of these sizes.
///
/// # Errors
/// More than [`MOST`], of all or along one dimension.
pub(crate) fn elements(operation: &'static str, sizes: &[usize]) -> Result<usize> {
    let product = sizes.iter().try_fold(1usize, |all, &n| all.checked_mul(n));
    let fits = |n: &usize| *n <= MOST;
    if let Some(product) = product.filter(fits)
        && sizes.iter().all(|n| fits(n))
    {
        return Ok(product);
    }
    Err(Error::argument(
        operation,
        format!("a tensor of {sizes:?} elements, but places are 32-bit numbers"),
        "split the tensor along its first dimension",
    ))
}

/// `count` elements as the 32-bit number with which kernels compute places.
pub(crate) fn places(operation: &'static str, count: usize) -> Result<u32> {
    elements(operation, &[count]).map(|count| count as u32)
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
