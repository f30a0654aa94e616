//! Models, each in three files: its mathematics, how it is split, how others name it.

pub mod gpt;
