//! A small model of every kind of placement and element type, saved and read back.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn_frontier::checkpoint::{Checkpoint, Piece, TensorSource, save_with};
use burn_frontier::comm::local::{LocalOptions, run};
use burn_frontier::comm::{Buffer, Communicator};
use burn_frontier::error::Result;
use burn_frontier::mesh::Layout;
use burn_frontier::placement::Placement;
use half::{bf16, f16};

/// A logical tensor: name, shape, how tensor parallelism splits it, and what zeros of its type look like.
pub struct Logical(pub &'static str, pub Vec<usize>, pub Placement, pub Buffer);

fn fused(dim: usize, part: usize) -> Placement {
    let (parts, multiple) = (vec![part; 3], 1);
    Placement::Sharded {
        dim,
        parts,
        multiple,
    }
}

/// Every kind of placement and element type.
pub fn model() -> Vec<Logical> {
    let (parts, multiple) = (vec![37], 4);
    let vocabulary = Placement::Sharded {
        dim: 0,
        parts,
        multiple,
    };
    vec![
        Logical(
            "embedding",
            vec![37, 4],
            vocabulary.clone(),
            Buffer::F32(vec![]),
        ),
        Logical(
            "embedding::exp_avg",
            vec![37, 4],
            vocabulary,
            Buffer::F64(vec![]),
        ),
        Logical("qkv.weight", vec![4, 12], fused(1, 4), Buffer::F32(vec![])),
        Logical("qkv.bias", vec![12], fused(0, 4), Buffer::F16(vec![])),
        Logical(
            "down",
            vec![8, 3],
            Placement::sharded(0, 8),
            Buffer::BF16(vec![]),
        ),
        Logical("norm", vec![5], Placement::Replicated, Buffer::F32(vec![])),
        Logical(
            "bytes",
            vec![3, 2, 2],
            Placement::Replicated,
            Buffer::U8(vec![]),
        ),
        Logical("count", vec![], Placement::Replicated, Buffer::I64(vec![])),
    ]
}

/// The local tensor of a rank; no two elements nearby are equal, none is zero, and `fill` tells checkpoints apart.
pub fn local(tensor: &Logical, fill: u64, tp: usize, ranks: usize) -> Buffer {
    let Logical(name, shape, placement, zeros) = tensor;
    let mut values = vec![0u8; placement.local_shape(shape, ranks).iter().product()];
    placement.for_each_run(shape, tp, ranks, |global, local, len| {
        for i in 0..len {
            let seed = (global + i) as u64 * 7 + fill * 31 + name.len() as u64;
            values[local + i] = (seed % 251 + 1) as u8;
        }
    });
    let values = values.into_iter();
    match zeros {
        Buffer::F32(_) => Buffer::F32(values.map(f32::from).collect()),
        Buffer::F64(_) => Buffer::F64(values.map(f64::from).collect()),
        Buffer::F16(_) => Buffer::F16(values.map(|v| f16::from_f32(v.into())).collect()),
        Buffer::BF16(_) => Buffer::BF16(values.map(|v| bf16::from_f32(v.into())).collect()),
        Buffer::I64(_) => Buffer::I64(values.map(i64::from).collect()),
        Buffer::U8(_) => Buffer::U8(values.collect()),
    }
}

/// What a rank saves: of what its data-parallel group shares, every replica saves some rows.
pub fn pieces(tensors: &[Logical], fill: u64, layout: Layout, rank: usize) -> Vec<Result<Piece>> {
    let at = layout.coordinate(rank);
    let mut pieces = Vec::new();
    for tensor in tensors {
        let Logical(name, shape, placement, _) = tensor;
        if *placement == Placement::Replicated && at.tp > 0 {
            continue;
        }
        let mut blocks = placement.blocks(shape, at.tp, layout.tp);
        for block in &mut blocks {
            let Some(&rows) = block.len.first() else {
                continue;
            };
            let (start, end) = (rows * at.dp / layout.dp, rows * (at.dp + 1) / layout.dp);
            block.global[0] += start;
            block.local[0] += start;
            block.len[0] = end - start;
        }
        blocks.retain(|block| block.count() > 0 && (!block.len.is_empty() || at.dp == 0));
        pieces.push(Ok(Piece {
            name: (*name).into(),
            shape: shape.clone(),
            blocks,
            local_shape: placement.local_shape(shape, layout.tp),
            data: local(tensor, fill, at.tp, layout.tp),
        }));
    }
    pieces
}

pub type Hook<'a> = &'a (dyn Fn(&str) -> Result<()> + Sync);

/// What a program saves beside its tensors; among the floats are some that only an exact reader gets right.
pub fn state(fill: u64) -> serde_json::Value {
    let rates: Vec<f64> = (0..100).map(|i| f64::from(i).sqrt() * 1e-5).collect();
    serde_json::json!({ "fill": fill, "rates": rates })
}

/// Saves the model in a layout; every rank's outcome.
pub fn save_model(
    folder: &Path,
    (step, fill): (u64, u64),
    layout: Layout,
    keep: usize,
    before: Hook,
) -> Vec<Result<PathBuf>> {
    let state = state(fill);
    let program = |comm: Arc<dyn Communicator>| {
        let pieces = pieces(&model(), fill, layout, comm.rank());
        Ok(save_with(
            folder, step, &state, pieces, &*comm, keep, &before,
        ))
    };
    run(layout.world(), &LocalOptions::default(), program).unwrap()
}

/// A checkpoint saved by two tensor-parallel ranks.
pub fn saved(folder: &Path, step: u64, keep: usize) -> PathBuf {
    let layout = Layout {
        tp: 2,
        ..Layout::single()
    };
    let outcomes = save_model(folder, (step, step), layout, keep, &|_| Ok(()));
    outcomes.into_iter().next().unwrap().unwrap()
}

/// Reads everything as each of `ranks` ranks, and compares it with what was saved; the `fill` of that.
pub fn read_model(checkpoint: &Checkpoint, ranks: usize) -> Result<u64> {
    let state: serde_json::Value = checkpoint.state()?;
    let fill = state["fill"].as_u64().unwrap();
    for tensor in &model() {
        let Logical(name, shape, placement, _) = tensor;
        for tp in 0..ranks {
            let blocks = placement.blocks(shape, tp, ranks);
            let local_shape = placement.local_shape(shape, ranks);
            let found = checkpoint.read(name, shape, &blocks, &local_shape)?;
            assert_eq!(
                found,
                local(tensor, fill, tp, ranks),
                "{name} on rank {tp} of {ranks}"
            );
        }
    }
    Ok(fill)
}

/// Names in a folder, in order.
pub fn listing(folder: &Path) -> Vec<String> {
    let name =
        |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    let mut names: Vec<String> = fs::read_dir(folder).unwrap().map(name).collect();
    names.sort();
    names
}

/// An error's text.
pub fn text<T>(outcome: Result<T>) -> String {
    outcome.err().expect("an error").to_string()
}
