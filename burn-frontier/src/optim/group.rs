//! Parameters that are updated otherwise than the rest.

use std::collections::BTreeSet;

use super::rule::Rule;
use crate::error::{Error, Result};
use crate::parameter::{ParameterSpec, Selection};

/// Some of an optimiser's parameters, which are updated otherwise than the rest, or not at all.
#[derive(Debug, Clone)]
pub struct ParameterGroup {
    /// The parameters.
    pub selection: Selection,
    /// Factor on the learning rate.
    pub rate_factor: f64,
    /// Their update; none: that of the rest.
    pub rule: Option<Rule>,
    /// Whether AdamW's weight decay applies to them; none: to matrices and embeddings. Burn's rules decay as they are made.
    pub decay: Option<bool>,
    /// They keep their values: no update, no state, no reduction of gradients.
    pub frozen: bool,
}

impl ParameterGroup {
    /// The parameters of `selection`, updated as the rest.
    pub fn new(selection: Selection) -> Self {
        Self {
            selection,
            rate_factor: 1.0,
            rule: None,
            decay: None,
            frozen: false,
        }
    }

    /// With another factor on the learning rate.
    pub fn with_rate_factor(mut self, rate_factor: f64) -> Self {
        self.rate_factor = rate_factor;
        self
    }

    /// With another update: [`AdamWConfig`](super::AdamWConfig), a [`BurnRule`](super::BurnRule), or what Burn's configurations
    /// `build()`.
    pub fn with_rule(mut self, rule: impl Into<Rule>) -> Self {
        self.rule = Some(rule.into());
        self
    }

    /// With or without AdamW's weight decay, whatever the parameters are.
    pub fn with_decay(mut self, decay: bool) -> Self {
        self.decay = Some(decay);
        self
    }

    /// Never updated.
    pub fn frozen(mut self) -> Self {
        self.frozen = true;
        self
    }
}

/// A rule of an optimiser, and the factor on its learning rate.
#[derive(Debug, Clone)]
pub(super) struct Update {
    pub rule: Rule,
    pub rate_factor: f64,
}

/// How all parameters of an optimiser are updated: number 0 is what is in no group, and the groups follow in order.
#[derive(Debug, Clone)]
pub(super) struct Updates {
    pub all: Vec<Update>,
    groups: Vec<ParameterGroup>,
}

impl Updates {
    /// Resolves the groups.
    pub fn new(rule: &Rule, groups: &[ParameterGroup]) -> Result<Self> {
        let mut all = vec![Update {
            rule: rule.clone(),
            rate_factor: 1.0,
        }];
        for (i, group) in groups.iter().enumerate() {
            let rule = group.rule.as_ref().unwrap_or(rule).clone();
            let factor = group.rate_factor;
            if !factor.is_finite() || factor < 0.0 {
                return Err(Error::config(
                    format!("parameter group {} has the rate factor {factor}", i + 1),
                    "give it one that is not negative",
                ));
            }
            if let (Rule::Burn(rule), Some(_)) = (&rule, group.decay) {
                return Err(Error::config(
                    format!(
                        "parameter group {} says whether its parameters decay, which {} decides itself",
                        i + 1,
                        rule.name()
                    ),
                    "give the group a rule that is made with the decay wanted",
                ));
            }
            all.push(Update {
                rule,
                rate_factor: factor,
            });
        }
        Ok(Self {
            all,
            groups: groups.to_vec(),
        })
    }

    /// The number of a parameter's update, and its group if it has one.
    pub fn of(&self, spec: &ParameterSpec) -> Result<(usize, Option<&ParameterGroup>)> {
        let groups = self.groups.iter().enumerate();
        let mut found = groups.filter(|(_, group)| group.selection.contains(&spec.name));
        let Some((i, group)) = found.next() else {
            return Ok((0, None));
        };
        if let Some((other, _)) = found.next() {
            return Err(Error::config(
                format!(
                    "{} is in the parameter groups {} and {}",
                    spec.name,
                    i + 1,
                    other + 1
                ),
                "let one of their selections leave it out",
            ));
        }
        Ok((i + 1, Some(group)))
    }

    /// Fails if the optimiser or a group has none of the model's parameters, or nothing is trained. `counts`, over all ranks: how
    /// many each update has, and how many are trained; `here`: the names of this stage's.
    pub fn check_counts(&self, counts: &[i64], here: &[String]) -> Result<()> {
        let (counts, trained) = counts.split_at(self.all.len());
        let what = if counts.iter().all(|&count| count == 0) {
            "the optimiser's selection has no parameter of the model".into()
        } else if let Some(empty) = counts[1..].iter().position(|&count| count == 0) {
            format!(
                "parameter group {} has no parameter of the optimiser's",
                empty + 1
            )
        } else if trained.iter().all(|&count| count == 0) {
            return Err(Error::config(
                "all parameters of the optimiser are frozen",
                "leave one at least out of the frozen parameter groups",
            ));
        } else {
            return Ok(());
        };
        Err(Error::config(
            what,
            format!("select names such as {}", examples(here)),
        ))
    }
}

/// A few of the names, shortest first.
fn examples(names: &[String]) -> String {
    let names: BTreeSet<_> = names.iter().map(|name| (name.len(), name)).collect();
    let few: Vec<_> = names
        .iter()
        .take(3)
        .map(|(_, name)| name.as_str())
        .collect();
    match few.is_empty() {
        true => "those that the model shows (this stage has none)".into(),
        false => few.join(", "),
    }
}
