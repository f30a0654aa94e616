//! Rotary position embedding (arXiv 2104.09864), the form that rotates the two halves of a head (GPT-NeoX, Llama).
//!
//! The rotation is orthogonal: the gradient of its input is the inverse rotation of that of its output.

use crate::argument::elements;
use crate::error::{Error, Result};
use crate::hip::emit::{Source, buffer, elem_type, emit};
use crate::matrix::instruction::{Element, Target};
use crate::rows::vector;

#[allow(missing_docs)]
mod kernel;
pub mod launch;
pub mod reference;

const OPERATION: &str = "rotary";

/// Lengths of queries or keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Samples.
    pub batch: usize,
    /// Heads.
    pub heads: usize,
    /// Tokens of a sample.
    pub seq: usize,
    /// Elements of a head, even.
    pub head_dim: usize,
}

impl Shape {
    /// Strides of a contiguous `[batch, heads, seq, head_dim]`.
    pub const fn heads_first(&self) -> Strides {
        let head = self.seq * self.head_dim;
        Strides {
            batch: self.heads * head,
            head,
            token: self.head_dim,
        }
    }

    /// Strides of a contiguous `[batch, seq, heads, head_dim]`.
    pub const fn tokens_first(&self) -> Strides {
        let token = self.heads * self.head_dim;
        Strides {
            batch: self.seq * token,
            head: self.head_dim,
            token,
        }
    }

    /// Elements.
    pub const fn count(&self) -> usize {
        self.batch * self.heads * self.seq * self.head_dim
    }

    /// Its four lengths.
    const fn all(&self) -> [usize; 4] {
        [self.batch, self.heads, self.seq, self.head_dim]
    }
}

/// Distances in elements; those of a head lie side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Strides {
    /// Of neighbouring samples.
    pub batch: usize,
    /// Of neighbouring heads.
    pub head: usize,
    /// Of neighbouring tokens.
    pub token: usize,
}

impl Strides {
    const fn all(&self) -> [usize; 3] {
        [self.batch, self.head, self.token]
    }

    /// Elements from the first of `shape`, none of whose lengths is 0, to the one behind the last.
    ///
    /// # Errors
    /// More than 32-bit places.
    fn span(&self, shape: Shape) -> Result<usize> {
        let Shape {
            batch,
            heads,
            seq,
            head_dim,
        } = shape;
        let mut span = head_dim;
        for (count, stride) in [(batch, self.batch), (heads, self.head), (seq, self.token)] {
            span = span.saturating_add(elements(OPERATION, &[count - 1, stride])?);
        }
        elements(OPERATION, &[span])
    }
}

/// The kernel for heads of one kind on one target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Plan {
    /// What the kernel is generated for.
    pub(crate) target: Target,
    /// Type of queries or keys; the tables are f32.
    pub(crate) element: Element,
    /// Elements of a head.
    pub(crate) head_dim: usize,
    /// Heads of a token.
    pub(crate) heads: u32,
    /// Elements of an access.
    pub(crate) vector: usize,
    /// Units of a workgroup.
    pub(crate) units: u32,
    /// Whether it rotates back.
    pub(crate) inverse: bool,
}

impl Plan {
    /// The kernel for `shape`, read by the strides `from` and written by `to`.
    ///
    /// # Errors
    /// An odd or empty head, lengths or strides beyond 32-bit places.
    pub fn choose(
        target: Target,
        element: Element,
        shape: Shape,
        [from, to]: [Strides; 2],
        inverse: bool,
    ) -> Result<Self> {
        elements(OPERATION, &shape.all())?;
        elements(OPERATION, &[shape.heads, shape.head_dim])?;
        for stride in [from.all(), to.all()].concat() {
            elements(OPERATION, &[stride])?;
        }
        let head_dim = shape.head_dim;
        if head_dim == 0 || head_dim % 2 != 0 {
            let problem = format!("heads of {head_dim} elements have no halves");
            return Err(Error::argument(
                OPERATION,
                problem,
                "give heads of even length",
            ));
        }
        let strides = [&from.all()[..], &to.all(), &[head_dim / 2]].concat();
        let vector = vector(target, element.bytes(), &strides);
        let heads = shape.heads as u32;
        let pairs = heads * (head_dim / 2 / vector) as u32;
        let units = pairs.next_power_of_two().clamp(64, 256);
        Ok(Self {
            target,
            element,
            head_dim,
            heads,
            vector,
            units,
            inverse,
        })
    }

    /// Type of queries or keys; the tables are f32.
    pub const fn element(&self) -> Element {
        self.element
    }

    /// Elements of an access.
    pub const fn vector(&self) -> usize {
        self.vector
    }

    /// The kernel's text.
    ///
    /// # Errors
    /// [`Target::Portable`].
    pub fn source(&self) -> Result<Source> {
        let Self {
            target,
            element,
            head_dim,
            heads,
            ..
        } = *self;
        let inverse = if self.inverse { "_inverse" } else { "" };
        let name =
            format!("rotary{inverse}_{heads}x{head_dim}_{element:?}_{target:?}").to_lowercase();
        let steps = || kernel::StepsCompilationArg {
            batch: (),
            head: (),
            token: (),
        };
        emit(name, target, [self.units, 1, 1], |s| {
            kernel::rotary_rotate::RotaryRotate::new(
                s.settings,
                s.device,
                s.target,
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                (),
                (),
                steps(),
                steps(),
                *self,
                elem_type(element),
                self.vector,
            )
        })
    }
}

/// What of the family stands in the catalog.
///
/// # Errors
/// A kernel that CubeCL cannot render.
pub fn sources(targets: &[Target]) -> Result<Vec<Source>> {
    let shape = Shape {
        batch: 1,
        heads: 32,
        seq: 2048,
        head_dim: 128,
    };
    let strides = [shape.heads_first(); 2];
    targets
        .iter()
        .filter(|target| **target != Target::Gfx1100)
        .map(|&target| Plan::choose(target, Element::Bf16, shape, strides, false)?.source())
        .collect()
}
