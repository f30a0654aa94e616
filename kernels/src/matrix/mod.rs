//! Matrix instructions and their register layouts. A kernel asks these maps; it never spells a layout.

pub mod instruction;
pub mod map;
