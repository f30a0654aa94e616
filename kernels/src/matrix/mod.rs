//! Matrix instructions and their register layouts. A kernel asks these maps; it never spells a layout.

pub mod instruction;
pub mod map;
mod ptx;

// CubeCL's macros write public items beside each function, without documentation.
#[allow(missing_docs)]
pub mod hint;
#[allow(missing_docs)]
pub mod lanes;
#[allow(missing_docs)]
pub mod load;
#[allow(missing_docs)]
pub mod math;
#[allow(missing_docs)]
pub mod narrow;
#[allow(missing_docs)]
pub mod product;
#[allow(missing_docs)]
pub mod spread;
#[allow(missing_docs)]
pub mod vector;
#[allow(missing_docs)]
pub mod words;
