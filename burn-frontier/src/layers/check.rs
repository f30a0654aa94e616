//! Which layers of a module do not give one rank's answer on many.

use std::collections::HashMap;

use burn::module::{Flag, Module, ModuleVisitor, Param, ParamId};

use crate::comm::Buffer;
use crate::comm::groups::Groups;
use crate::error::{Error, Result};

/// Refuses what makes training depend on threads, restarts or the layout:
/// - layers of `burn::nn` that draw from the process's generator, also inside of its transformers and attention;
/// - with more than one replica, `burn::nn::BatchNorm`, whose statistics would be each replica's own;
/// - layers of [`layers`](super) that have a name together, in this module or in those of other stages.
///
/// Layers that are frozen may stay. Draws that a model's own code makes are not seen here:
/// [`GeneratorWatch`](crate::random::GeneratorWatch) sees them. Every rank calls it before training; it all-gathers the layers'
/// names over the pipeline.
///
/// # Errors
/// Names such layers by their paths, with what to use in their place.
pub fn check<M: Module>(module: &M, groups: &Groups) -> Result<()> {
    let (flags, debug) = (flags(module), format!("{module:?}"));
    check_drawing(&flags, &debug)?;
    check_statistics(&flags, groups.layout.dp)?;
    let stage = groups.at.pp;
    let names = flags.iter().filter_map(|flag| flag.name(&debug));
    let lines = names.map(|(name, path)| format!("{name}\t{path} of stage {stage}\n"));
    let lines = lines.collect::<String>().into_bytes();
    let names = groups.pp.all_gather(Buffer::U8(lines))?.into_u8()?;
    check_names(&String::from_utf8_lossy(&names))
}

fn check_drawing(flags: &[Switch], debug: &str) -> Result<()> {
    let drawing: Vec<String> = flags.iter().filter_map(|f| f.drawing(debug)).collect();
    if drawing.is_empty() {
        return Ok(());
    }
    Err(Error::config(
        format!(
            "in training these draw from the process's random generator, whose numbers depend on threads and restarts: {}",
            listed(&drawing)
        ),
        "use burn_frontier::layers::Dropout or GaussianNoise, or switch the layer off (probability 0, or freeze it)",
    ))
}

fn check_statistics(flags: &[Switch], replicas: usize) -> Result<()> {
    let own: Vec<String> = flags.iter().filter_map(Switch::own_statistics).collect();
    if replicas == 1 || own.is_empty() {
        return Ok(());
    }
    Err(Error::config(
        format!(
            "burn's BatchNorm takes the statistics of one replica's samples, and there are {replicas} replicas: {}",
            listed(&own)
        ),
        "use burn_frontier::layers::SyncBatchNorm, whose records are the same, or freeze the layer",
    ))
}

/// The first of some layers, and how many more there are.
fn listed(layers: &[String]) -> String {
    const SHOWN: usize = 6;
    let shown = layers[..layers.len().min(SHOWN)].join(", ");
    match layers.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// `names` has a line a layer: its name, a tab, and where it is.
fn check_names(names: &str) -> Result<()> {
    let mut places = HashMap::new();
    for (name, place) in names.lines().filter_map(|line| line.split_once('\t')) {
        if let Some(other) = places.insert(name, place) {
            return Err(Error::config(
                format!("{other} and {place} draw random numbers by one name, {name}"),
                "give each layer a name of its own, such as its path in the whole model; make one that a stage does not use an Option, and none there",
            ));
        }
    }
    Ok(())
}

/// Whether the replicas of a module meet while they go through it in training: whether it has a
/// [`SyncBatchNorm`](super::SyncBatchNorm) that is not frozen. Then all replicas need as many micro-batches.
pub fn synchronises<M: Module>(module: &M) -> bool {
    let flags = flags(module);
    flags.iter().any(|flag| flag.layer == "SyncBatchNorm")
}

/// Paths of the batch norms that take part in training.
pub(crate) fn batch_norms<M: Module>(module: &M) -> Vec<String> {
    let flags = flags(module).into_iter();
    let norms = flags.filter(|flag| ["BatchNorm", "SyncBatchNorm"].contains(&&*flag.layer));
    norms.map(|flag| flag.path).collect()
}

/// A flag of a layer that takes part in training.
struct Switch {
    path: String,
    layer: String,
    field: String,
    id: ParamId,
}

impl Switch {
    /// If it is of a layer that draws from the process's generator: its path, and what it is.
    fn drawing(&self, debug: &str) -> Option<String> {
        let Self { path, layer, .. } = self;
        let first = match layer.as_str() {
            "Dropout" => "prob: ",
            "GaussianNoise" => "std: ",
            "RRelu" => "lower: ",
            _ => return None,
        };
        if self.field != "training" {
            return None;
        }
        let Some(attributes) = self.attributes(debug) else {
            return Some(format!(
                "{path} (burn's {layer}; how strong it is, the model's Debug does not show)"
            ));
        };
        // What has other attributes is not Burn's, and what is 0 draws nothing.
        let strength = attributes.strip_prefix(first)?;
        (strength != "0.0").then(|| format!("{path} (burn's {layer}, {attributes})"))
    }

    /// If it is of a batch norm of Burn: its path.
    fn own_statistics(&self) -> Option<String> {
        (self.layer == "BatchNorm" && self.field == "training").then(|| self.path.clone())
    }

    /// If it is of a layer of ours that draws: its name, in quotes, and its path.
    fn name(&self, debug: &str) -> Option<(String, &str)> {
        if self.field != "active" {
            return None;
        }
        let (name, _) = self.attributes(debug)?.rsplit_once(", ")?;
        Some((name.strip_prefix("name: ")?.into(), &self.path))
    }

    /// The fields before the flag in the layer's Debug text, which is the only place where they can be seen.
    fn attributes<'a>(&self, debug: &'a str) -> Option<&'a str> {
        let end = debug.find(&format!(", {}: Param: {} ", self.field, self.id))?;
        let start = format!("{} {{ ", self.layer);
        Some(&debug[debug[..end].rfind(&start)? + start.len()..end])
    }
}

/// The flags of a module's layers that take part in training.
fn flags<M: Module>(module: &M) -> Vec<Switch> {
    #[derive(Default)]
    struct Flags {
        /// Names of the modules that the visitor is in, and the layers that they are fields of.
        stack: Vec<(String, String)>,
        found: Vec<Switch>,
    }
    impl ModuleVisitor for Flags {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.stack.push((name.into(), container.into()));
        }
        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.stack.pop();
        }
        fn visit_flag(&mut self, flag: &Param<Flag>) {
            let Some(((field, container), above)) = self.stack.split_last() else {
                return;
            };
            if !flag.is_enabled() {
                return;
            }
            let names: Vec<&str> = above.iter().map(|(name, _)| &**name).collect();
            let path = match &*names {
                [] => "the model itself".into(),
                names => names.join("."),
            };
            self.found.push(Switch {
                path,
                layer: container
                    .strip_prefix("Struct:")
                    .unwrap_or(container)
                    .into(),
                field: field.clone(),
                id: flag.id,
            });
        }
    }
    let mut visitor = Flags::default();
    module.visit(&mut visitor);
    visitor.found
}
