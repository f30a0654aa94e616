//! How what a rule of Burn's remembers of a parameter lies in a checkpoint.

use burn::tensor::{Device, Tensor, TensorData};

use super::rule::{Apart, BurnRule, Number, RuleState};
use crate::checkpoint::{Piece, TensorSource};
use crate::comm::Buffer;
use crate::comm::tensor::{from_buffer, to_buffer};
use crate::error::{Error, Result};
use crate::placement::{Block, Placement};

/// The suffix of a parameter's weights in full precision.
pub(super) const MASTER: &str = "::master";

/// What a checkpoint has of a parameter beside its value and its master weights.
#[derive(Debug, PartialEq)]
pub(super) struct Stored {
    /// Names of numbers, and the numbers.
    pub numbers: Vec<(String, Number)>,
    /// Names of tensors, and their shapes.
    pub tensors: Vec<(String, Vec<usize>)>,
}

impl Stored {
    /// Of the parameter `name`.
    pub fn of(name: &str, source: &dyn TensorSource) -> Result<Self> {
        let prefix = format!("{name}::");
        let (mut numbers, mut tensors) = (Vec::new(), Vec::new());
        for (full, shape) in source.list(&prefix) {
            let own = full[prefix.len()..].to_owned();
            if own == MASTER[2..] {
                continue;
            }
            if shape.is_empty() {
                numbers.push((own, read_number(&full, source)?));
            } else {
                tensors.push((own, shape));
            }
        }
        Ok(Self { numbers, tensors })
    }

    fn is_empty(&self) -> bool {
        self.numbers.is_empty() && self.tensors.is_empty()
    }

    /// The rule's state of a tensor of rank `rank`, whose stored tensors `read` gives. `steps`: how many were done.
    pub fn state(
        &self,
        rule: &BurnRule,
        (name, rank, device): (&str, usize, &Device),
        steps: u64,
        read: impl Fn(&str, &[usize]) -> Result<TensorData>,
    ) -> Result<Option<RuleState>> {
        if steps == 0 && self.is_empty() {
            return Ok(None);
        }
        let mut apart = Apart {
            numbers: self.numbers.iter().cloned().collect(),
            ..Apart::default()
        };
        for (own, shape) in &self.tensors {
            apart.tensors.insert(own.clone(), read(own, shape)?);
        }
        let state = rule.put_together(rank, &apart, device);
        let state = state.ok_or_else(|| self.unknown(rule, name))?;
        let again = rule.take_apart(&state);
        let known = again.numbers.keys().eq(apart.numbers.keys())
            && again.tensors.keys().eq(apart.tensors.keys());
        if !known {
            return Err(self.unknown(rule, name));
        }
        for (own, data) in &apart.tensors {
            let made = again.tensors[own].dtype();
            if made != data.dtype() {
                return Err(Error::config(
                    format!(
                        "{own} of {name} is stored in {:?}, and Burn makes {made:?} of it",
                        data.dtype()
                    ),
                    "make that the device's default type of floats, or use AdamW, which keeps its type",
                ));
            }
        }
        Ok(Some(state))
    }

    fn unknown(&self, rule: &BurnRule, name: &str) -> Error {
        let numbers = self.numbers.iter().map(|(own, _)| own.as_str());
        let tensors = self.tensors.iter().map(|(own, _)| own.as_str());
        let has: Vec<_> = numbers.chain(tensors).collect();
        let has = match has.is_empty() {
            true => "nothing".into(),
            false => has.join(", "),
        };
        Error::config(
            format!(
                "what is stored of {name} is not what {} remembers: {has}",
                rule.name()
            ),
            "continue with the rule that it was saved with, or load the parameters alone (load_parameters)",
        )
    }
}

fn read_number(name: &str, source: &dyn TensorSource) -> Result<Number> {
    let block = Block {
        global: Vec::new(),
        local: Vec::new(),
        len: Vec::new(),
    };
    Ok(match source.read(name, &[], &[block], &[])? {
        Buffer::I64(v) => Number::Integer(v[0]),
        Buffer::F64(v) => Number::Float(v[0]),
        Buffer::U8(v) => Number::Truth(v[0] != 0),
        other => {
            return Err(Error::config(
                format!("{name} is a number of type {}", other.dtype()),
                "load another checkpoint",
            ));
        }
    })
}

/// A number as a piece.
pub(super) fn number_piece(name: String, number: Number) -> Piece {
    let data = match number {
        Number::Integer(number) => Buffer::I64(vec![number]),
        Number::Float(number) => Buffer::F64(vec![number]),
        Number::Truth(number) => Buffer::U8(vec![u8::from(number)]),
    };
    whole_piece(name, Vec::new(), data)
}

/// A tensor that this rank has whole.
pub(super) fn whole_piece(name: String, shape: Vec<usize>, data: Buffer) -> Piece {
    Piece {
        name,
        blocks: Placement::Replicated.blocks(&shape, 0, 1),
        local_shape: shape.clone(),
        shape,
        data,
    }
}

/// A whole tensor `[elements]`, read.
pub(super) fn read_whole(
    source: &dyn TensorSource,
    name: &str,
    shape: &[usize],
    device: &Device,
) -> Result<Tensor<1>> {
    let blocks = Placement::Replicated.blocks(shape, 0, 1);
    let data = source.read(name, shape, &blocks, shape)?;
    let count = data.len();
    from_buffer(data, [count].into(), device)
}

/// A tensor of a rule's state as a flat one on a device.
pub(super) fn to_flat(data: TensorData, device: &Device) -> Tensor<1> {
    let dtype = data.dtype();
    let count = data.shape().num_elements();
    Tensor::from_data(with_shape(data, &[count]), (device, dtype))
}

/// A flat tensor as one of a rule's state.
pub(super) fn from_flat(flat: Tensor<1>, shape: &[usize]) -> Result<TensorData> {
    let data = flat
        .try_into_data()
        .map_err(|e| Error::Internal(format!("cannot read a tensor: {e:?}")))?;
    Ok(with_shape(data, shape))
}

/// The elements of a tensor of a rule's state.
pub(super) fn to_elements(data: TensorData, device: &Device) -> Result<Buffer> {
    to_buffer(to_flat(data, device))
}

fn with_shape(data: TensorData, shape: &[usize]) -> TensorData {
    let (bytes, _, dtype) = data.into_parts();
    TensorData::from_bytes(bytes, shape.to_vec(), dtype)
}
