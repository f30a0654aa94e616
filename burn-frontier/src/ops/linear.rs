//! Matrix product with bias over the last dimension.

use burn::tensor::Tensor;

/// `x W + b`.
///
/// # Shapes
/// x `[batch, seq, in]`, weight `[in, out]`, bias `[out]`; gives `[batch, seq, out]`.
pub fn linear(x: Tensor<3>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<3> {
    let [batch, seq, input] = x.dims();
    let [_, output] = weight.dims();
    // One matrix product over all tokens, so that the weight's gradient is one as well.
    let y = x.reshape([batch * seq, input]).matmul(weight);
    let y = match bias {
        Some(bias) => y + bias.unsqueeze(),
        None => y,
    };
    y.reshape([batch, seq, output])
}
