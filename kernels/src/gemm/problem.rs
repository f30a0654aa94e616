//! What a product is: how its operands lie, their extents, what follows it.

use super::tile::Role;

/// How A and B lie in memory, rows first. C is `[m, n]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Layout {
    /// A `[m, k]`, B `[k, n]`: the gradient of a linear layer's input.
    Nn,
    /// A `[m, k]`, B `[n, k]`: a linear layer.
    Nt,
    /// A `[k, m]`, B `[k, n]`: the gradient of a linear layer's weight.
    Tn,
}

impl Layout {
    /// Whether an operand's consecutive elements run along K.
    pub const fn along_k(self, role: Role) -> bool {
        match role {
            Role::Rows => matches!(self, Self::Nn | Self::Nt),
            Role::Columns => matches!(self, Self::Nt),
        }
    }
}

/// A function of the sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Activation {
    /// The identity.
    #[default]
    None,
    /// GELU in its tanh form (Hendrycks and Gimpel, 2016).
    Gelu,
    /// `silu(gate) * up` (Shazeer, 2020): B and bias have `2 n` columns, the gate's first.
    SwiGlu,
    /// Times the derivative of [`Activation::Gelu`] at the saved pre-activation.
    GeluBackward,
    /// The gradients of gate and up, `[m, 2 n]`, from the gradient of [`Activation::SwiGlu`] and the saved pre-activation.
    SwiGluBackward,
}

impl Activation {
    /// Whether it takes two sums.
    pub const fn paired(self) -> bool {
        matches!(self, Self::SwiGlu)
    }

    /// Whether it reads a saved pre-activation.
    pub const fn is_backward(self) -> bool {
        matches!(self, Self::GeluBackward | Self::SwiGluBackward)
    }
}

/// What is done with a sum before it is written, in this order; all of it in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Epilogue {
    /// Times a number that the launch gives.
    pub scale: bool,
    /// Plus a bias `[n]`.
    pub bias: bool,
    /// Through a function.
    pub activation: Activation,
    /// The function's argument is written too, `[m, n]` or (SwiGLU) `[m, 2 n]`.
    pub save: bool,
    /// Plus a tensor `[m, n]`.
    pub residual: bool,
    /// Plus what C holds; C is f32.
    pub accumulate: bool,
}

impl Epilogue {
    /// Whether a second tensor is read: the residual or a pre-activation.
    pub const fn reads_other(&self) -> bool {
        self.residual || self.activation.is_backward()
    }
}

/// The shape of a product and how its operands lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Products; C is `[batches, m, n]`.
    pub batches: usize,
    /// Rows of C.
    pub m: usize,
    /// Columns of C (SwiGLU: B has twice as many).
    pub n: usize,
    /// What is summed over.
    pub k: usize,
    /// Distance of neighbouring rows of A in memory, and of its batches (0: one for all), in elements.
    pub a: (usize, usize),
    /// The same of B.
    pub b: (usize, usize),
}

impl Shape {
    /// Contiguous operands.
    pub const fn contiguous(
        layout: Layout,
        batches: usize,
        m: usize,
        n: usize,
        k: usize,
        paired: bool,
    ) -> Self {
        let columns = if paired { 2 * n } else { n };
        let a = if layout.along_k(Role::Rows) { k } else { m };
        let b = if layout.along_k(Role::Columns) {
            k
        } else {
            columns
        };
        Self {
            batches,
            m,
            n,
            k,
            a: (a, m * k),
            b: (b, columns * k),
        }
    }
}
