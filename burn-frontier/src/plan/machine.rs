//! What a machine can do, as a file that people can read and `cargo xtask measure` can write.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::precision::Precision;

mod correction;
mod links;

pub use correction::{Correction, Observation};
pub use links::{Algorithm, Collective, Group, Link, Links, Network};

/// The files that come with the library.
const FILES: [(&str, &str); 7] = [
    ("frontier", include_str!("../../machines/frontier.toml")),
    (
        "frontier-neox",
        include_str!("../../machines/frontier-neox.toml"),
    ),
    ("h200", include_str!("../../machines/h200.toml")),
    ("a100", include_str!("../../machines/a100.toml")),
    ("a100-ib4", include_str!("../../machines/a100-ib4.toml")),
    ("a100-ib8", include_str!("../../machines/a100-ib8.toml")),
    ("laptop", include_str!("../../machines/laptop.toml")),
];

/// Least of what must be more than nothing, in its unit.
const LEAST: f64 = 1e-9;

/// Most of anything, in its unit: no time or rate that is made of such numbers overflows.
const MOST: f64 = 1e12;

/// A machine: one device a rank, the links between them, and the software that drives them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// Its name.
    pub name: String,
    /// What it is, and where its numbers come from.
    pub about: String,
    /// Relative error to expect of step times.
    pub uncertainty: f64,
    /// One rank's device.
    pub device: Device,
    /// What connects the ranks.
    pub links: Links,
    /// What runs on it.
    pub software: Software,
    /// How far measured passes differ from the model.
    #[serde(default)]
    pub correction: Correction,
}

/// One rank's device (a GCD on MI250X).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// Memory, in GiB.
    pub memory_gib: f64,
    /// Memory that the driver and the libraries take before the first tensor, in GiB.
    pub reserved_gib: f64,
    /// Share of the tensors' bytes that the allocator needs besides.
    pub allocator_overhead: f64,
    /// Sustained copy bandwidth, read and write together, in GB/s.
    pub memory_gbs: f64,
    /// Data-sheet peak of fp16 and bf16 matrix products, in TFLOP/s.
    pub half_tflops: f64,
    /// Data-sheet peak of fp32 matrix products, in TFLOP/s.
    pub single_tflops: f64,
    /// Share of the peak that the largest products reach. Nothing is planned above it.
    pub gemm_ceiling: f64,
    /// Output tiles (of 128 x 128) at which a product reaches half its ceiling.
    pub half_tiles: f64,
    /// Summed dimension at which a product reaches half its ceiling.
    pub half_depth: f64,
    /// Share of the peak that the products of attention reach.
    pub attention_ceiling: f64,
    /// What every kernel costs the device besides its work, in microseconds.
    pub kernel_us: f64,
    /// What launching a kernel costs the host, which runs ahead of the device, in microseconds.
    pub launch_us: f64,
    /// Relative standard deviation of a rank's time for the same work.
    pub jitter: f64,
    /// Whether all ranks compute on this one device, as threads on a CPU do: then their work adds up.
    #[serde(default)]
    pub shared: bool,
}

/// A training program. It decides what is kept for the backward pass, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Program {
    /// This project.
    BurnFrontier,
    /// Megatron-LM and Megatron-DeepSpeed.
    Megatron,
}

/// The training software whose times the machine file describes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Software {
    /// Which.
    pub program: Program,
    /// Kernels of one layer's forward pass; a backward pass has twice as many.
    pub kernels: f64,
    /// Bytes of one gradient element on its way over the replicas.
    pub gradient_bytes: f64,
    /// Bytes that a step of the optimizer moves through memory for one parameter.
    pub optimizer_bytes: f64,
    /// How often a score matrix goes through memory, relative to fused scale, mask, softmax and dropout.
    pub attention_traffic: f64,
    /// Whether a stage waits until its message has been sent.
    pub blocking_messages: bool,
    /// Whether tensor-parallel ranks each send their share of a message that all of them hold.
    pub split_messages: bool,
    /// What a message costs its sender besides transit, in microseconds.
    pub message_us: f64,
}

impl Machine {
    /// Names of the machines that come with the library.
    pub fn names() -> impl Iterator<Item = &'static str> {
        FILES.iter().map(|(name, _)| *name)
    }

    /// A machine that comes with the library, or the file at the given path.
    ///
    /// # Errors
    /// A name that is neither, a file that cannot be read, or values that cannot be.
    pub fn load(name: &str) -> Result<Self> {
        if let Some((_, text)) = FILES.iter().find(|(known, _)| *known == name) {
            return Self::parse(text, Path::new(name));
        }
        let path = Path::new(name);
        if !path.exists() {
            let names: Vec<_> = Self::names().collect();
            return Err(Error::config(
                format!("there is no machine named '{name}', and no such file"),
                format!(
                    "choose one of {}, or measure yours with `cargo xtask measure`",
                    names.join(", ")
                ),
            ));
        }
        let text = crate::utf8::read(path)?;
        Self::parse(&text, path)
    }

    /// Reads a machine file; `path` is for messages.
    ///
    /// # Errors
    /// Text that is no machine file, or values that cannot be.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let wrong = |what: String| {
            Error::format(
                path,
                what,
                "compare it with one of the files in burn-frontier/machines",
            )
        };
        let mut machine: Self =
            toml::from_str(text).map_err(|e| wrong(format!("this is not a machine file: {e}")))?;
        machine.validate().map_err(|e| wrong(e.to_string()))?;
        machine.correction.prepare();
        Ok(machine)
    }

    /// The machine file's text.
    ///
    /// # Errors
    /// None in practice: every field can be written.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string_pretty(self).map_err(|e| Error::Internal(e.to_string()))
    }

    /// Peak in FLOP/s of one rank's matrix products.
    pub fn peak(&self, precision: Precision) -> f64 {
        1e12 * if precision.is_half() {
            self.device.half_tflops
        } else {
            self.device.single_tflops
        }
    }

    /// The same machine, with so many bytes for a rank's tensors.
    #[must_use]
    pub fn with_memory(mut self, bytes: f64) -> Self {
        self.device.reserved_gib = 0.0;
        self.device.memory_gib = bytes / 2f64.powi(30);
        self
    }

    /// Bytes that a rank's tensors may take.
    pub fn usable_bytes(&self) -> f64 {
        (self.device.memory_gib - self.device.reserved_gib) * 2f64.powi(30)
    }

    fn validate(&self) -> Result<()> {
        let (d, l, s) = (&self.device, &self.links, &self.software);
        let positive = [
            ("device.memory_gib", d.memory_gib),
            ("device.memory_gbs", d.memory_gbs),
            ("device.half_tflops", d.half_tflops),
            ("device.single_tflops", d.single_tflops),
            ("device.gemm_ceiling", d.gemm_ceiling),
            ("device.attention_ceiling", d.attention_ceiling),
            ("links.card.gbs", l.card.gbs),
            ("links.node.gbs", l.node.gbs),
            ("links.network.nic_gbs", l.network.nic_gbs),
            ("links.network.efficiency", l.network.efficiency),
            (
                "links.network.message_efficiency",
                l.network.message_efficiency,
            ),
            ("software.kernels", s.kernels),
            ("software.attention_traffic", s.attention_traffic),
        ];
        let not_negative = [
            ("uncertainty", self.uncertainty),
            ("device.reserved_gib", d.reserved_gib),
            ("device.allocator_overhead", d.allocator_overhead),
            ("device.half_tiles", d.half_tiles),
            ("device.half_depth", d.half_depth),
            ("device.kernel_us", d.kernel_us),
            ("device.launch_us", d.launch_us),
            ("device.jitter", d.jitter),
            ("links.card.us", l.card.us),
            ("links.node.us", l.node.us),
            ("links.network.us", l.network.us),
            ("software.gradient_bytes", s.gradient_bytes),
            ("software.optimizer_bytes", s.optimizer_bytes),
            ("software.message_us", s.message_us),
        ];
        for (least, values) in [(LEAST, &positive[..]), (0.0, &not_negative)] {
            for &(name, value) in values {
                if !(least..=MOST).contains(&value) {
                    return Err(Error::config(
                        format!("{name} is {value}"),
                        format!("give it a value from {least} to {MOST}"),
                    ));
                }
            }
        }
        self.validate_shares()?;
        l.validate()
    }

    /// What is a part of something, and cannot be more.
    fn validate_shares(&self) -> Result<()> {
        let (d, l) = (&self.device, &self.links);
        for (name, share) in [
            ("device.gemm_ceiling", d.gemm_ceiling),
            ("device.attention_ceiling", d.attention_ceiling),
            ("links.network.efficiency", l.network.efficiency),
            (
                "links.network.message_efficiency",
                l.network.message_efficiency,
            ),
        ] {
            if share > 1.0 {
                return Err(Error::config(
                    format!("{name} is {share}, more than is possible"),
                    "give the share that is reached, at most 1",
                ));
            }
        }
        if d.reserved_gib >= d.memory_gib {
            return Err(Error::config(
                format!(
                    "{} of {} GiB are reserved, which leaves nothing",
                    d.reserved_gib, d.memory_gib
                ),
                "lower device.reserved_gib",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shipped_file_is_read_and_written_back_unchanged() {
        for name in Machine::names() {
            let machine = Machine::load(name).unwrap();
            assert_eq!(machine.name, name);
            let again = Machine::parse(&machine.to_toml().unwrap(), Path::new("copy")).unwrap();
            assert_eq!(again, machine);
        }
    }

    #[test]
    fn an_unknown_machine_is_refused_with_the_known_ones() {
        let error = Machine::load("summit").unwrap_err().to_string();
        for part in [
            "'summit'",
            "frontier, frontier-neox, h200",
            "cargo xtask measure",
        ] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_file_with_impossible_values_is_refused_by_name() {
        let good = Machine::load("h200").unwrap().to_toml().unwrap();
        let refuse = |from: &str, to: &str| {
            let line = good.lines().find(|line| line.starts_with(from)).unwrap();
            let text = good.replacen(line, &format!("{from} = {to}"), 1);
            Machine::parse(&text, Path::new("mine.toml"))
                .unwrap_err()
                .to_string()
        };
        for (field, value) in [
            ("memory_gbs", "-1.0"),
            ("gemm_ceiling", "1.2"),
            ("reserved_gib", "1000.0"),
            ("kernel_us", "nan"),
            ("kernel_us", "1e300"),
            ("memory_gbs", "1e-300"),
            ("ranks_per_node", "4611686018427387904"),
            ("ranks_per_card", "4611686018427387904"),
        ] {
            let error = refuse(field, value);
            assert!(
                error.contains("mine.toml") && error.contains(field),
                "{error}"
            );
        }
        let error = Machine::parse("name = 1", Path::new("mine.toml")).unwrap_err();
        assert!(error.to_string().contains("machines"), "{error}");
    }
}
