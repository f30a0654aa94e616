//! From text to samples: documents, tokens, Megatron's `.bin`/`.idx`, and an order that a checkpoint can name.
//!
//! In reading order:
//! - [`text`] finds documents in files, folders and JSONL;
//! - [`tokenizer`] turns a document into token ids: bytes, or any Hugging Face `tokenizer.json`;
//! - [`indexed`] reads Megatron-LM's indexed dataset, [`indexed_writer`] writes it, [`tokenize`] fills it from text;
//! - [`dataset`] is a range of documents, in memory or mapped from disk, and its split into train and validation;
//! - [`sampler`] packs documents into samples; sample `i` is a function of (dataset, seed, `i`) alone, by the
//!   [`permutation`]s of each epoch;
//! - [`baseline`] is the loss that counting tokens reaches.

pub mod baseline;
pub mod dataset;
pub mod indexed;
pub mod indexed_writer;
pub mod permutation;
pub mod sampler;
pub mod text;
pub mod tokenize;
pub mod tokenizer;

pub use baseline::unigram_loss;
pub use dataset::Dataset;
pub use sampler::{Sampler, SamplerConfig};
pub use tokenize::tokenize_corpus;
pub use tokenizer::Tokenizer;
