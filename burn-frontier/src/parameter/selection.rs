//! Which of a model's parameters something is about.

use std::fmt;
use std::sync::Arc;

/// Some of a model's parameters, by global name. Clones share the rule.
#[derive(Clone, Default)]
pub struct Selection(Option<Arc<Accepts>>);

/// Whether a name is one of them.
type Accepts = dyn Fn(&str) -> bool + Send + Sync;

impl Selection {
    /// All of them.
    pub fn all() -> Self {
        Self(None)
    }

    /// Those whose names `rule` accepts.
    pub fn matching(rule: impl Fn(&str) -> bool + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(rule)))
    }

    /// Those inside the module `path`, such as `generator`: its own name, and all that begin with it and a dot.
    pub fn within(path: impl Into<String>) -> Self {
        let path = path.into();
        Self::matching(move |name| {
            let rest = name.strip_prefix(&path);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        })
    }

    /// Whether a parameter is one of them.
    pub fn contains(&self, name: &str) -> bool {
        self.0.as_ref().is_none_or(|rule| rule(name))
    }
}

impl fmt::Debug for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            None => "Selection::all()",
            Some(_) => "Selection::matching(..)",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_is_not_another_whose_name_begins_alike() {
        let inside = Selection::within("generator");
        assert!(inside.contains("generator.linear.weight"));
        assert!(inside.contains("generator"));
        assert!(!inside.contains("generator2.linear.weight"));
        assert!(!inside.contains("discriminator.linear.weight"));
        assert!(Selection::all().contains("anything"));
    }
}
