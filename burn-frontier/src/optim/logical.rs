//! Logical parameters out of the parts that tensor-parallel ranks hold, on the device.

use burn::tensor::Tensor;

use crate::comm::Group;
use crate::ops::exchange::{Exchange, apply};
use crate::parameter::ParameterSpec;
use crate::placement::Placement;

/// A parameter `[elements]` from every rank's part of it `[local count]`, without padding.
///
/// # Communication
/// If the parameter is split, an all-gather over `tp`; a failure is kept by the group.
pub(super) fn gather(part: Tensor<1>, spec: &ParameterSpec, tp: &Group) -> Tensor<1> {
    let Placement::Sharded { dim, .. } = spec.placement else {
        return part;
    };
    let (outer, inner) = around(&spec.shape, dim);
    let local = spec.placement.local_shape(&spec.shape, tp.size())[dim];
    let parts = apply(part, tp, Exchange::AllGather(0));
    // Every rank's part, as rows of the split dimension: [ranks, outer, local, inner]
    let parts = parts.reshape([tp.size(), outer, local, inner]);
    let mut blocks = Vec::new();
    for rank in 0..tp.size() {
        for block in spec.placement.blocks(&spec.shape, rank, tp.size()) {
            blocks.push((block.global[dim], rank, block.local[dim], block.len[dim]));
        }
    }
    blocks.sort_unstable();
    let blocks = blocks.into_iter().map(|(_, rank, start, len)| {
        let block = parts.clone().narrow(0, rank, 1).narrow(2, start, len);
        block.reshape([outer, len, inner])
    });
    let whole: Tensor<3> = Tensor::cat(blocks.collect(), 1);
    whole.reshape([spec.shape.iter().product::<usize>()])
}

/// This rank's part `[local count]` of a parameter `[elements]`, padded with zeros.
pub(super) fn own(whole: Tensor<1>, spec: &ParameterSpec, tp: &Group) -> Tensor<1> {
    let Placement::Sharded { dim, .. } = spec.placement else {
        return whole;
    };
    let (outer, inner) = around(&spec.shape, dim);
    let local = spec.placement.local_shape(&spec.shape, tp.size())[dim];
    let whole = whole.reshape([outer, spec.shape[dim], inner]);
    let padding = |n: usize| Tensor::zeros([outer, n, inner], (&whole.device(), whole.dtype()));
    let (mut runs, mut end) = (Vec::new(), 0);
    for block in spec.placement.blocks(&spec.shape, tp.rank(), tp.size()) {
        let start = block.local[dim];
        if start > end {
            runs.push(padding(start - end));
        }
        end = start + block.len[dim];
        runs.push(whole.clone().narrow(1, block.global[dim], block.len[dim]));
    }
    if end < local {
        runs.push(padding(local - end));
    }
    let own: Tensor<3> = Tensor::cat(runs, 1);
    own.reshape([outer * local * inner])
}

/// Elements before and after a dimension.
fn around(shape: &[usize], dim: usize) -> (usize, usize) {
    (
        shape[..dim].iter().product(),
        shape[dim + 1..].iter().product(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comm::local::{self, LocalOptions};
    use crate::parameter::Init;
    use burn::tensor::{DType, Device, TensorData};

    #[test]
    fn a_parameter_is_gathered_from_its_parts_and_cut_into_them_again() {
        let fused = |dim, parts: &[usize], multiple| Placement::Sharded {
            dim,
            parts: parts.to_vec(),
            multiple,
        };
        for (shape, placement) in [
            (vec![5, 16], fused(1, &[8, 4, 4], 1)),
            (vec![16, 3], fused(0, &[8, 4, 4], 1)),
            (vec![7], Placement::sharded(0, 7)),
            (vec![2, 5, 3], Placement::sharded(1, 5)),
            (vec![130, 2], fused(0, &[130], 128)),
            (vec![4, 3], Placement::Replicated),
        ] {
            let spec = ParameterSpec {
                name: "weight".into(),
                shape: shape.clone(),
                placement,
                gradient: Placement::Replicated,
                init: Init::Constant(0.0),
                decay: true,
            };
            let n: usize = shape.iter().product();
            let values: Vec<f32> = (0..n).map(|i| i as f32 + 1.0).collect();
            for ranks in [1, 2, 4] {
                local::run(ranks, &LocalOptions::default(), |tp| {
                    let data = TensorData::new(values.clone(), [n]);
                    let whole = Tensor::<1>::from_data(data, (&Device::flex(), DType::F32));
                    let part = own(whole, &spec, &tp);
                    let mut expected = vec![0.0f32; part.dims()[0]];
                    spec.placement
                        .for_each_run(&shape, tp.rank(), ranks, |from, to, len| {
                            expected[to..to + len].copy_from_slice(&values[from..from + len]);
                        });
                    assert_eq!(part.to_data().try_to_vec::<f32>().unwrap(), expected);
                    let again = gather(part, &spec, &tp);
                    assert_eq!(again.into_data().try_to_vec::<f32>().unwrap(), values);
                    Ok(())
                })
                .unwrap();
            }
        }
    }
}
