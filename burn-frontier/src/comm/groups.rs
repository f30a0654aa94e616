//! The groups of one rank in a layout.

use std::sync::Arc;

use super::Communicator;
use crate::error::{Error, Result};
use crate::mesh::{Coordinate, Layout};

/// One rank's view of the mesh: where it stands and whom it talks to.
#[derive(Debug, Clone)]
pub struct Groups {
    /// The mesh.
    pub layout: Layout,
    /// Where this rank stands in it.
    pub at: Coordinate,
    /// All ranks.
    pub world: Arc<dyn Communicator>,
    /// Ranks that share this rank's layers.
    pub tp: Arc<dyn Communicator>,
    /// The pipeline, first stage first.
    pub pp: Arc<dyn Communicator>,
    /// Ranks that hold the same parameters.
    pub dp: Arc<dyn Communicator>,
    /// First and last stage, on those two; elsewhere this rank alone.
    pub embedding: Arc<dyn Communicator>,
}

impl Groups {
    /// Forms the groups of `layout`. Every rank of `world` calls it.
    ///
    /// # Errors
    /// A world of another size than the layout's.
    pub fn new(layout: Layout, world: Arc<dyn Communicator>) -> Result<Self> {
        let layout = layout.validated()?;
        if layout.world() != world.size() {
            return Err(Error::config(
                format!(
                    "the layout {layout} has {} ranks, the world {}",
                    layout.world(),
                    world.size()
                ),
                "start as many ranks as tp x pp x dp",
            ));
        }
        let at = layout.coordinate(world.rank());
        let ends = at.pp == 0 || at.pp + 1 == layout.pp;
        let embedding = if ends {
            layout.embedding_group(at)
        } else {
            vec![world.rank()]
        };
        Ok(Self {
            layout,
            at,
            tp: world.subgroup("tp", &layout.tp_group(at))?,
            pp: world.subgroup("pp", &layout.pp_group(at))?,
            dp: world.subgroup("dp", &layout.dp_group(at))?,
            embedding: world.subgroup("embedding", &embedding)?,
            world,
        })
    }

    /// Whether this is the first stage.
    pub fn is_first_stage(&self) -> bool {
        self.at.pp == 0
    }
}
