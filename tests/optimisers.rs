//! Every rule of Burn's gives in every layout what it gives by hand on whole parameters.

#[path = "optimisers/gpt.rs"]
mod gpt;
#[path = "optimisers/groups.rs"]
mod groups;
mod harness;
#[path = "optimisers/net.rs"]
mod net;
#[path = "optimisers/refusals.rs"]
mod refusals;
#[path = "optimisers/rules.rs"]
mod rules;
#[path = "optimisers/several.rs"]
mod several;
#[path = "optimisers/training.rs"]
mod training;
