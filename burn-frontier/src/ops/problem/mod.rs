//! What operations are asked for, in descriptions that the operations and the backends share and that know neither.

pub(crate) mod adamw;
pub(crate) mod attention;
pub(crate) mod batch_norm;
pub(crate) mod convolution;
pub(crate) mod dropout;
pub(crate) mod gradient_sum;
pub(crate) mod layers;
pub(crate) mod pool;
pub(crate) mod rotary;
