//! Which layers of a module do not give one rank's answer on many.

use burn::module::{Flag, Module, ModuleVisitor, Param, ParamId};

use crate::error::{Error, Result};

/// Refuses what makes training depend on threads, restarts or the layout:
/// - layers of `burn::nn` that draw from the process's generator, also inside of its transformers and attention;
/// - with more than one replica, `burn::nn::BatchNorm`, whose statistics would be each replica's own;
/// - layers of [`layers`](super) that have a name together.
///
/// Layers that are frozen may stay. Draws that a model's own code makes are not seen here:
/// [`GeneratorWatch`](crate::random::GeneratorWatch) sees them.
///
/// # Errors
/// Names such layers by their paths, with what to use in their place.
pub fn check<M: Module>(module: &M, replicas: usize) -> Result<()> {
    let (flags, debug) = (flags(module), format!("{module:?}"));
    let drawing: Vec<String> = flags.iter().filter_map(|f| f.drawing(&debug)).collect();
    if !drawing.is_empty() {
        return Err(Error::config(
            format!(
                "in training the process's random generator is drawn from by {}: the numbers would depend on threads and restarts",
                drawing.join(", ")
            ),
            "use burn_frontier::layers::Dropout or GaussianNoise, or switch the layer off (probability 0, or freeze it)",
        ));
    }
    let own: Vec<&str> = flags.iter().filter_map(Switch::own_statistics).collect();
    if replicas > 1 && !own.is_empty() {
        return Err(Error::config(
            format!(
                "burn's BatchNorm takes the statistics of one replica's samples, and there are {replicas} replicas: {}",
                own.join(", ")
            ),
            "use burn_frontier::layers::SyncBatchNorm, whose records are the same, or freeze the layer",
        ));
    }
    one_name_each(&flags, &debug)
}

/// Whether the replicas of a module meet while they go through it in training: whether it has a
/// [`SyncBatchNorm`](super::SyncBatchNorm) that is not frozen. Then all replicas need as many micro-batches.
pub fn synchronises<M: Module>(module: &M) -> bool {
    let flags = flags(module);
    flags.iter().any(|flag| flag.layer == "SyncBatchNorm")
}

fn one_name_each(flags: &[Switch], debug: &str) -> Result<()> {
    let named: Vec<_> = flags.iter().filter_map(|f| f.name(debug)).collect();
    for (i, (name, path)) in named.iter().enumerate() {
        if let Some((_, other)) = named[..i].iter().find(|(other, _)| other == name) {
            return Err(Error::config(
                format!("{other} and {path} draw random numbers by one name, {name}"),
                "give each layer a name of its own, such as its path",
            ));
        }
    }
    Ok(())
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
        if self.field != "training" || !["Dropout", "GaussianNoise", "RRelu"].contains(&&**layer) {
            return None;
        }
        let Some(attributes) = self.attributes(debug) else {
            return Some(format!(
                "{path} (burn's {layer}; how strong it is, the model's Debug does not show)"
            ));
        };
        // Burn's three layers, when they draw nothing.
        let silent = ["prob: 0.0", "std: 0.0"].contains(&attributes);
        (!silent).then(|| format!("{path} (burn's {layer}, {attributes})"))
    }

    /// If it is of a batch norm of Burn: its path.
    fn own_statistics(&self) -> Option<&str> {
        (self.layer == "BatchNorm" && self.field == "training").then_some(&*self.path)
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
