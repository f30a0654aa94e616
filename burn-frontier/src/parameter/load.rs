//! Reads a model's parameters from what is stored by name.

use super::{Module, Parameter, Selection, Visitor};
use crate::checkpoint::TensorSource;
use crate::comm::Group;
use crate::error::Result;

/// Reads the parameters of a stage from a checkpoint or an imported model.
///
/// # Errors
/// A tensor that is missing, of another shape, or damaged.
pub fn load_parameters<M: Module>(
    chunks: &mut [M],
    source: &dyn TensorSource,
    tp: &Group,
) -> Result<()> {
    load_selected(chunks, &Selection::all(), source, tp)
}

/// [`load_parameters`] of those that are selected.
pub(crate) fn load_selected<M: Module>(
    chunks: &mut [M],
    selection: &Selection,
    source: &dyn TensorSource,
    tp: &Group,
) -> Result<()> {
    struct Load<'a> {
        selection: &'a Selection,
        source: &'a dyn TensorSource,
        tp: &'a Group,
        result: Result<()>,
    }
    impl Visitor for Load<'_> {
        fn visit<const D: usize>(&mut self, p: &mut Parameter<D>) {
            if self.result.is_err() || !self.selection.contains(&p.spec.name) {
                return;
            }
            let local = p.spec.placement.local_shape(&p.spec.shape, self.tp.size());
            let read = self
                .source
                .read(&p.spec.name, &p.spec.shape, &p.blocks(self.tp), &local);
            self.result = read.and_then(|data| p.load(data));
        }
    }
    let mut load = Load {
        selection,
        source,
        tp,
        result: Ok(()),
    };
    chunks.iter_mut().for_each(|chunk| chunk.visit(&mut load));
    load.result
}
