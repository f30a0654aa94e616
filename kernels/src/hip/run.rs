//! Executes a kernel's text on the CPU, with the lanes, waves and matrix instructions of its GPU.
//!
//! The text is compiled with the harness of `kernels/hip/` into a program, which runs in a process of its own for each
//! launch. What goes wrong there is an error here: lanes that part at a barrier, a data race, an access beyond a buffer,
//! a launch that does not end.

mod bytes;
mod program;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::hip::emit::Source;
use crate::hip::text::{Field, Signature};
use crate::hip::tools::{self, Ended, Scratch};
use crate::matrix::instruction::Target;

pub use bytes::{Plain, bytes, values};

/// What watches a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Sanitizer {
    /// Nothing: the fastest.
    #[default]
    None,
    /// ThreadSanitizer: data races between waves, such as a missing barrier.
    Thread,
    /// AddressSanitizer and UndefinedBehaviorSanitizer: accesses beyond a buffer or an array in shared memory.
    Address,
}

/// Scalar arguments, by type, each in the order of the kernel's parameters.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Scalars {
    /// `u32` arguments.
    pub u32: Vec<u32>,
    /// `i32` arguments.
    pub i32: Vec<i32>,
    /// `f32` arguments.
    pub f32: Vec<f32>,
    /// `u64` arguments.
    pub u64: Vec<u64>,
}

/// A launch of a kernel.
#[derive(Debug, Clone)]
pub struct Launch<'a> {
    /// The kernel.
    pub source: &'a Source,
    /// Workgroups along x, y, z.
    pub grid: [u32; 3],
    /// The buffers, in the order of the kernel's parameters, with their contents.
    pub buffers: Vec<Vec<u8>>,
    /// The scalar arguments.
    pub scalars: Scalars,
    /// The order of blocks, waves and lanes: ascending (0), descending (1), or drawn from this seed.
    pub lane_order: u64,
    /// What watches it.
    pub sanitizer: Sanitizer,
    /// When it is stopped.
    pub time_limit: Duration,
}

impl<'a> Launch<'a> {
    /// A launch without scalars, in ascending order, with no sanitizer, stopped after two minutes.
    pub fn new(source: &'a Source, grid: [u32; 3], buffers: Vec<Vec<u8>>) -> Self {
        Self {
            source,
            grid,
            buffers,
            scalars: Scalars::default(),
            lane_order: 0,
            sanitizer: Sanitizer::None,
            time_limit: Duration::from_secs(120),
        }
    }

    /// Executes the kernel, and returns the buffers as it leaves them.
    ///
    /// # Errors
    /// Arguments that do not fit the kernel, a text that does not compile, clang missing, and every fault of the kernel
    /// that the harness or the sanitizer finds.
    pub fn run(&self) -> Result<Vec<Vec<u8>>> {
        let signature = Signature::read(self.source)?;
        self.check(&signature)?;
        let program = program::of(self.source, self.sanitizer)?;
        let folder = tools::cache()?;
        let (launch, results) = (Scratch::new(&folder), Scratch::new(&folder));
        launch.write(&self.file(&signature)?)?;
        let ended = self.execute(&program, &launch, &results, &folder)?;
        self.judge(&ended)?;
        let mut rest = results.read()?;
        let mut buffers = Vec::with_capacity(self.buffers.len());
        for buffer in &self.buffers {
            if rest.len() < buffer.len() {
                return Err(self.error("the harness left results that end early"));
            }
            let after = rest.split_off(buffer.len());
            buffers.push(std::mem::replace(&mut rest, after));
        }
        Ok(buffers)
    }

    fn execute(
        &self,
        program: &Path,
        launch: &Scratch,
        results: &Scratch,
        folder: &Path,
    ) -> Result<Ended> {
        let symbolizer = tools::symbolizer().map_or_else(String::new, |path| {
            format!(":external_symbolizer_path={}", path.display())
        });
        let mut command = Command::new(program);
        command
            .args([launch.path(), results.path()])
            .env("TSAN_OPTIONS", format!("halt_on_error=1{symbolizer}"))
            .env("ASAN_OPTIONS", format!("detect_leaks=0{symbolizer}"))
            .env("UBSAN_OPTIONS", format!("halt_on_error=1{symbolizer}"));
        tools::run(&mut command, folder, self.time_limit)
    }

    fn judge(&self, ended: &Ended) -> Result<()> {
        let output = tools::first_lines(&ended.output);
        match ended.status {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(self.error(format!("execution failed ({status}):\n{output}"))),
            None => Err(self.error(format!(
                "still running after {:?}; does a loop never end? It wrote:\n{output}",
                self.time_limit
            ))),
        }
    }

    fn check(&self, signature: &Signature) -> Result<()> {
        let (takes, given) = (signature.buffers.len(), self.buffers.len());
        if takes != given {
            return Err(self.error(format!("takes {takes} buffers, but {given} were given")));
        }
        for (i, (expected, buffer)) in signature.buffers.iter().zip(&self.buffers).enumerate() {
            if buffer.len() % expected.bytes != 0 {
                return Err(self.error(format!(
                    "buffer {i} has {} bytes, no multiple of the {} of a {}",
                    buffer.len(),
                    expected.bytes,
                    expected.element
                )));
            }
        }
        let known = [
            "static_meta",
            "scalars_u32",
            "scalars_i32",
            "scalars_f32",
            "scalars_u64",
        ];
        match signature
            .info
            .iter()
            .find(|field| !known.contains(&field.name.as_str()))
        {
            Some(field) => Err(self.error(format!("{} cannot be passed yet", field.name))),
            None => Ok(()),
        }
    }

    /// The launch file that `kernels/hip/launch.h` reads.
    fn file(&self, signature: &Signature) -> Result<Vec<u8>> {
        let info = match signature.info.is_empty() {
            true => None,
            false => Some(self.info(signature)?),
        };
        let buffers: Vec<&[u8]> = self
            .buffers
            .iter()
            .map(Vec::as_slice)
            .chain(info.as_deref())
            .collect();
        let target = self.source.target;
        let words = [
            target.lanes() as u64,
            u64::from(target == Target::Gfx90a),
            self.lane_order,
            self.source.shared_memory as u64,
        ];
        let geometry = self
            .grid
            .into_iter()
            .chain(self.source.units)
            .map(u64::from);
        let sizes = std::iter::once(buffers.len()).chain(buffers.iter().map(|b| b.len()));
        let header = words
            .into_iter()
            .chain(geometry)
            .chain(sizes.map(|size| size as u64));
        let mut file: Vec<u8> = header.flat_map(u64::to_ne_bytes).collect();
        file.extend(buffers.concat());
        Ok(file)
    }

    /// The block of scalars and lengths, as CubeCL lays it out.
    fn info(&self, signature: &Signature) -> Result<Vec<u8>> {
        let mut block = Vec::new();
        for field in &signature.info {
            let scalars = &self.scalars;
            let given = match field.name.as_str() {
                "scalars_u32" => bytes(&scalars.u32),
                "scalars_i32" => bytes(&scalars.i32),
                "scalars_f32" => bytes(&scalars.f32),
                "scalars_u64" => bytes(&scalars.u64),
                _ => self.lengths(signature),
            };
            block.extend(self.padded(field, given)?);
        }
        Ok(block)
    }

    /// Elements of each buffer.
    fn lengths(&self, signature: &Signature) -> Vec<u8> {
        let buffers = signature.buffers.iter().zip(&self.buffers);
        let lengths: Vec<u32> = buffers
            .map(|(buffer, given)| (given.len() / buffer.bytes) as u32)
            .collect();
        bytes(&lengths)
    }

    /// CubeCL fills a field up to a multiple of 8 bytes, so that its text does not say how many scalars there are.
    fn padded(&self, field: &Field, mut given: Vec<u8>) -> Result<Vec<u8>> {
        let size = field.bytes * field.count;
        if given.len().next_multiple_of(8) != size {
            return Err(self.error(format!(
                "{} has room for {} elements, but {} were given",
                field.name,
                field.count,
                given.len() / field.bytes
            )));
        }
        given.resize(size, 0);
        Ok(given)
    }

    fn error(&self, reason: impl Into<String>) -> Error {
        Error::Run {
            kernel: self.source.name.clone(),
            reason: reason.into(),
        }
    }
}
