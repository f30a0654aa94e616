//! What a faster way gives: values, ways back, and gradients.

use burn::tensor::Tensor;

use crate::ops::problem::adamw::{AdamWRun, AdamWState};

/// A norm's gradients: of x, weight, and bias if it has one.
pub(crate) struct NormGradients {
    /// Of x `[batch, seq, hidden]`.
    pub x: Tensor<3>,
    /// Of the weight `[hidden]`.
    pub weight: Tensor<1>,
    /// Of the bias `[hidden]`.
    pub bias: Option<Tensor<1>>,
}

/// From a norm's output gradient to its gradients.
pub(crate) type NormBackward = Box<dyn FnOnce(Tensor<3>) -> Option<NormGradients> + Send>;

/// A residual sum and its norm, `[batch, seq, hidden]` each, and their way back.
pub(crate) type AddNorm = ([Tensor<3>; 2], AddNormBackward);

/// From the gradients of a norm and, if it has one, of the sum that it is of, to those of the residual and, as in a norm, of
/// what was added to it.
pub(crate) type AddNormBackward =
    Box<dyn FnOnce(Tensor<3>, Option<Tensor<3>>) -> Option<(Tensor<3>, NormGradients)> + Send>;

/// Attention's gradients.
pub(crate) struct AttentionGradients {
    /// Of query, key and value.
    pub inputs: [Tensor<4>; 3],
    /// Of the biases that there are.
    pub biases: [Option<Tensor<4>>; 2],
}

/// Attention's value and its way back.
pub(crate) struct Attended {
    /// `[batch, heads, seq, head_dim]`.
    pub output: Tensor<4>,
    /// The log-sum-exps of the scores `[batch, heads, seq]` in f32, -inf where a query sees no key.
    pub log_sum_exp: Box<dyn FnOnce() -> Tensor<3> + Send>,
    /// Its gradients.
    pub backward: AttentionBackward,
}

/// From the gradients of attention's output and, if they were used, of its log-sum-exps to its gradients.
pub(crate) type AttentionBackward =
    Box<dyn FnOnce(Tensor<4>, Option<Tensor<3>>) -> Option<AttentionGradients> + Send>;

/// From the gradient of self-attention's output to that of query, key and value side by side.
pub(crate) type SelfAttentionBackward = Box<dyn FnOnce(Tensor<3>) -> Tensor<3> + Send>;

/// A linear layer's gradients: of its input, its weight `[in, out]`, and its bias if it has one.
pub(crate) struct LinearGradients {
    /// Of x `[batch, seq, in]`.
    pub x: Tensor<3>,
    /// Of the parameters.
    pub parameters: ParameterGradients,
}

/// Gradients of a weight `[in, out]` and of a bias `[out]`, in the parameters' type; neither where they were added to sums.
pub(crate) type ParameterGradients = (Option<Tensor<2>>, Option<Tensor<1>>);

/// From a linear layer's output gradient to its gradients.
pub(crate) type LinearBackward = Box<dyn FnOnce(Tensor<3>) -> Option<LinearGradients> + Send>;

/// A feed-forward block's gradients.
pub(crate) struct FeedForwardGradients {
    /// Of x `[batch, seq, hidden]`.
    pub x: Tensor<3>,
    /// Of the first layer's parameters.
    pub up: ParameterGradients,
    /// Of the second layer's.
    pub down: ParameterGradients,
}

/// From a feed-forward block's output gradient to its gradients.
pub(crate) type FeedForwardBackward =
    Box<dyn FnOnce(Tensor<3>) -> Option<FeedForwardGradients> + Send>;

/// What a rank knows of the cross entropy of each token, f32 `[tokens]` each.
pub(crate) struct TokenStatistics {
    /// The largest logit here.
    pub largest: Tensor<1>,
    /// The sum of `exp(logit - largest)` here.
    pub sum: Tensor<1>,
    /// The target's logit, 0 where the target is not here.
    pub target: Tensor<1>,
}

/// The gradient of the logits, written over them, from the largest logit and the sum of the whole vocabulary and the
/// gradient of the loss, `[tokens]` each; the logits if no kernel does that.
pub(crate) type CrossEntropyBackward =
    Box<dyn FnOnce([Tensor<1>; 3]) -> Result<Tensor<2>, Box<Tensor<2>>> + Send>;

/// What an AdamW step gives, or what it was given if no kernel does it.
pub(crate) type AdamWOutcome = Result<(AdamWState, Tensor<1>), Box<AdamWRun>>;
