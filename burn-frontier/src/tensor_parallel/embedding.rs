//! Token embedding and output projection, split over the vocabulary.

use std::ops::Range;

use burn::tensor::Tensor;

use super::maps;
use crate::comm::Group;
use crate::error::{Error, Result};
use crate::ops::cross_entropy::cross_entropy;
use crate::ops::embedding::embedding;
use crate::ops::exchange::{Exchange, apply};
use crate::ops::linear::projection;
use crate::parameter::{Init, Parameter, ParameterContext, ParameterSpec};
use crate::placement::Placement;

/// A rank's rows of the vocabulary are a multiple of this, so that matrix tiles fit.
pub const VOCABULARY_MULTIPLE: usize = 128;

/// A table of `[vocabulary, hidden]`, split by rows: an embedding, an output projection, or both (tied).
#[derive(Debug, Clone)]
pub struct VocabularyParallel {
    /// `[padded vocabulary / tp, hidden]`; padding rows are zero and take no part.
    pub weight: Parameter<2>,
    tp: Group,
    sequence_parallel: bool,
}

crate::module!(VocabularyParallel { weight });

impl VocabularyParallel {
    /// The table `name`, with normal first values.
    pub fn spec(name: &str, vocabulary: usize, hidden: usize, deviation: f64) -> ParameterSpec {
        let placement = Placement::Sharded {
            dim: 0,
            parts: vec![vocabulary],
            multiple: VOCABULARY_MULTIPLE,
        };
        ParameterSpec {
            name: name.into(),
            shape: vec![vocabulary, hidden],
            gradient: placement.clone(),
            placement,
            init: Init::Normal(deviation),
            decay: true,
        }
    }

    /// Makes the table of `spec`.
    pub fn init(spec: ParameterSpec, context: &ParameterContext) -> Self {
        Self {
            weight: Parameter::init(spec, context),
            tp: context.tp.clone(),
            sequence_parallel: context.sequence_parallel,
        }
    }

    /// Global ids of this rank's rows, without padding.
    pub fn ids(&self) -> Range<usize> {
        let [rows, _] = self.weight.value.dims();
        let vocabulary = self.weight.spec.shape[0];
        let start = (self.tp.rank() * rows).min(vocabulary);
        start..(start + rows).min(vocabulary)
    }

    /// Rows of the given tokens (row-major `[batch, seq]`).
    ///
    /// # Shapes
    /// Gives `[batch, seq, hidden]` (`seq / tp` under sequence parallelism).
    ///
    /// # Communication
    /// Over tp: forward all-reduce of the output (reduce-scatter under sequence parallelism, all-gather of the gradient).
    ///
    /// # Errors
    /// Tokens that are not in the vocabulary, not as many for every sample, or that sequence parallelism cannot split.
    pub fn embed(&self, tokens: &[i64], batch: usize) -> Result<Tensor<3>> {
        if batch == 0 || !tokens.len().is_multiple_of(batch) {
            return Err(Error::config(
                format!("{} tokens for {batch} samples", tokens.len()),
                "give every sample as many tokens",
            ));
        }
        let split = if self.sequence_parallel {
            self.tp.size()
        } else {
            1
        };
        check_split(tokens.len() / batch, split)?;
        check_tokens(tokens, self.weight.spec.shape[0])?;
        let [seq, hidden] = [tokens.len() / batch, self.weight.value.dims()[1]];
        let ids = self.ids();
        let row = |&token: &i64| {
            let id = usize::try_from(token).ok().filter(|id| ids.contains(id))?;
            u32::try_from(id - ids.start).ok()
        };
        // Of a token that is another rank's there is no row here.
        let rows = tokens.iter().map(row).collect();
        let table = self.weight.value.clone();
        let x = embedding(table, rows, self.weight.sum.as_ref())?;
        let x = x.reshape([batch, seq, hidden]);
        if self.tp.size() == 1 {
            return Ok(x);
        }
        Ok(if self.sequence_parallel {
            maps::reduce_scatter_to_sp(x, &self.tp)
        } else {
            maps::reduce_from_tp(x, &self.tp)
        })
    }

    /// This rank's columns of the logits.
    ///
    /// # Shapes
    /// x `[batch, seq, hidden]` (`seq / tp` under sequence parallelism); gives `[batch * seq, padded vocabulary / tp]`.
    ///
    /// # Communication
    /// As [`super::linear::ColumnParallelLinear::forward`].
    fn local_logits(&self, x: Tensor<3>) -> Result<Tensor<2>> {
        let x = if self.sequence_parallel {
            maps::gather_from_sp(x, &self.tp)
        } else {
            maps::copy_to_tp(x, &self.tp)
        };
        let [batch, seq, _] = x.dims();
        let logits = projection(x, self.weight.value.clone(), self.weight.sum.as_ref())?;
        let columns = logits.dims()[2];
        Ok(logits.reshape([batch * seq, columns]))
    }

    /// Cross entropy of every token against `targets` (row-major `[batch, seq]`; negative: ignored). Gives `[batch * seq]`.
    ///
    /// # Communication
    /// Of the logits' inputs as a column-parallel linear; then as [`cross_entropy`].
    ///
    /// # Errors
    /// Targets that are not in the vocabulary, or not as many as tokens; another width than the table's.
    pub fn loss(&self, x: Tensor<3>, targets: &[i64]) -> Result<Tensor<1>> {
        let counted = targets.iter().filter(|&&target| target >= 0);
        check_tokens(counted, self.weight.spec.shape[0])?;
        cross_entropy(self.local_logits(x)?, targets, self.ids(), &self.tp)
    }

    /// All logits, for generation and tests: `[batch * seq, vocabulary]`, without padding.
    ///
    /// # Communication
    /// All-gather of the local logits over tp.
    ///
    /// # Errors
    /// Another width than the table's.
    pub fn logits(&self, x: Tensor<3>) -> Result<Tensor<2>> {
        let local = self.local_logits(x)?.without_autodiff();
        // Padding lies at the end of the last ranks' rows, so it ends up behind the vocabulary.
        let all = apply(local, &self.tp, Exchange::AllGather(1));
        Ok(all.narrow(1, 0, self.weight.spec.shape[0]))
    }
}

/// Fails at a token that is not in the vocabulary.
pub(crate) fn check_tokens<'a>(
    tokens: impl IntoIterator<Item = &'a i64>,
    vocabulary: usize,
) -> Result<()> {
    let known = |token: i64| usize::try_from(token).is_ok_and(|token| token < vocabulary);
    match tokens.into_iter().find(|&&token| !known(token)) {
        None => Ok(()),
        Some(token) => Err(Error::config(
            format!("token {token} is not in the vocabulary of {vocabulary}"),
            "use the tokenizer that the model is made for, or enlarge its vocabulary",
        )),
    }
}

/// Fails unless the sequence can be split into parts of one length.
pub(crate) fn check_split(tokens: usize, split: usize) -> Result<()> {
    if tokens.is_multiple_of(split) {
        return Ok(());
    }
    Err(Error::config(
        format!(
            "a sample of {tokens} tokens cannot be split over tp {split} by sequence parallelism"
        ),
        format!("use samples of a multiple of {split} tokens, or no sequence parallelism"),
    ))
}
