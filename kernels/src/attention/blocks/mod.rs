//! Attention by plain multiply-adds, where no instruction multiplies matrices: a workgroup owns some rows of one tensor and passes
//! over those of another, a block at a time.
//!
//! The products of the owned rows with those of a block are a [`gemm`](crate::gemm) of their own, in registers. What becomes of
//! them lies in shared memory, from where each lane multiplies its rows with its part of the streamed rows. No lane has a
//! whole row of anything, so that registers are few however long the rows are, and no text grows with their length.

mod layout;
mod pass;

pub(crate) use layout::Blocks;
pub(crate) use pass::{
    Memory, Quad, Rows, accumulate, first_row, join, multiply, of_lane, write, zeros,
};
