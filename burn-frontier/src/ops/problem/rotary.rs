//! The angles of rotary position embedding.

use burn::tensor::{DType, Device, Tensor, TensorData};

/// Cosines and sines of the angles by which every position is rotated.
#[derive(Debug, Clone)]
pub struct RotaryTable {
    /// `[seq, head_dim / 2]`
    pub(crate) cos: Tensor<2>,
    /// `[seq, head_dim / 2]`
    pub(crate) sin: Tensor<2>,
}

impl RotaryTable {
    /// The angles `position base^(-2 i / head_dim)` of the positions `0..seq`, for heads of even length. `base` is usually
    /// 10000. Half precision does not tell far positions apart, so `dtype` is at least f32.
    pub fn new(seq: usize, head_dim: usize, base: f64, (device, dtype): (&Device, DType)) -> Self {
        let half = head_dim / 2;
        let dtype = if dtype == DType::F64 {
            dtype
        } else {
            DType::F32
        };
        let table = |f: fn(f64) -> f64| {
            let angles = (0..seq).flat_map(|position| {
                (0..half)
                    .map(move |i| f(position as f64 * base.powf(-2.0 * i as f64 / head_dim as f64)))
            });
            let data = TensorData::new(angles.collect::<Vec<f64>>(), [seq, half]);
            Tensor::<2>::from_data(data, (&device.clone().without_autodiff(), dtype))
        };
        Self {
            cos: table(f64::cos),
            sin: table(f64::sin),
        }
    }

    /// The first positions.
    pub(crate) fn first(&self, seq: usize) -> Self {
        Self {
            cos: self.cos.clone().narrow(0, 0, seq),
            sin: self.sin.clone().narrow(0, 0, seq),
        }
    }

    /// The angles of the rotation back, which is the gradient's: the rotation is orthogonal.
    pub(crate) fn inverse(&self) -> Self {
        Self {
            cos: self.cos.clone(),
            sin: self.sin.clone().neg(),
        }
    }
}
