//! Reads an assembly text: which instructions a kernel has, what it moves, how long its inner loop takes by LLVM's model.
//!
//! All of this is static. llvm-mca knows nothing of memory latency, caches or other waves: its cycles are an estimate for
//! comparing texts, no measurement.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::hip::tools::{self, Scratch};
use crate::matrix::instruction::{INSTRUCTIONS, Instruction, Target, Unit};

/// A kernel's assembly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assembly {
    target: Target,
    text: String,
}

/// What a text's accesses to global memory move, each counted once, as if every lane took part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Instructions that load.
    pub loads: usize,
    /// Bytes a lane that they load.
    pub loaded: usize,
    /// Instructions that store.
    pub stores: usize,
    /// Bytes a lane that they store.
    pub stored: usize,
}

/// An inner loop.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Loop {
    /// Instructions of an iteration, branches excepted.
    pub instructions: usize,
    /// Matrix instructions among them.
    pub matrix: usize,
    /// Cycles of an iteration, by llvm-mca. Its cycle is on CDNA a pass: the four clocks that a wave takes for an addition.
    pub cycles: f64,
    /// Cycles that its matrix instructions occupy the matrix unit; 0 on RDNA3, whose rates are not published.
    pub matrix_cycles: usize,
}

impl Loop {
    /// The share of the cycles in which the matrix unit works, if the loop is for it.
    pub fn matrix_share(&self) -> Option<f64> {
        (self.matrix_cycles > 0).then(|| self.matrix_cycles as f64 / self.cycles)
    }
}

impl Assembly {
    /// The assembly `text` of a kernel for `target`.
    pub fn new(target: Target, text: String) -> Self {
        Self { target, text }
    }

    /// The text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// How often each opcode stands in the text.
    pub fn opcodes(&self) -> BTreeMap<&str, usize> {
        let mut counts = BTreeMap::new();
        for instruction in self.text.lines().filter_map(instruction) {
            *counts.entry(opcode(instruction)).or_default() += 1;
        }
        counts
    }

    /// Instructions in the text whose opcode starts so.
    pub fn count(&self, prefix: &str) -> usize {
        let instructions = self.text.lines().filter_map(instruction);
        instructions
            .filter(|i| opcode(i).starts_with(prefix))
            .count()
    }

    /// Matrix instructions in the text.
    pub fn matrix(&self) -> usize {
        self.count("v_mfma") + self.count("v_wmma")
    }

    /// What the vector accesses to global memory move. Scalar loads, of what all lanes share, are not counted.
    pub fn traffic(&self) -> Traffic {
        let mut traffic = Traffic::default();
        for instruction in self.text.lines().filter_map(instruction) {
            let opcode = opcode(instruction);
            let access = ["global_", "flat_", "buffer_"]
                .iter()
                .find_map(|p| opcode.strip_prefix(p));
            if let Some(what) = access.and_then(|access| access.strip_prefix("load_")) {
                traffic.loads += 1;
                traffic.loaded += width(what);
            } else if let Some(what) = access.and_then(|access| access.strip_prefix("store_")) {
                traffic.stores += 1;
                traffic.stored += width(what);
            }
        }
        traffic
    }

    /// The innermost loop with the most matrix instructions, or without any with the most instructions; of equal ones the
    /// shortest. `None` if the text has no loop.
    ///
    /// # Errors
    /// llvm-mca is missing or does not know an instruction.
    pub fn inner_loop(&self) -> Result<Option<Loop>> {
        let Some(body) = self.inner_loop_body() else {
            return Ok(None);
        };
        let mut matrix_cycles = 0;
        let matrix: Vec<&str> = body
            .iter()
            .map(|i| opcode(i))
            .filter(|o| is_matrix(o))
            .collect();
        for opcode in matrix.iter().filter(|opcode| opcode.starts_with("v_mfma")) {
            let passes = of_opcode(opcode).and_then(|i| i.passes(self.target));
            let passes = passes.ok_or_else(|| {
                Error::Tool(format!(
                    "{opcode} is not in the table of matrix instructions; add it there"
                ))
            })?;
            matrix_cycles += passes;
        }
        Ok(Some(Loop {
            instructions: body.len(),
            matrix: matrix.len(),
            cycles: self.cycles(&body)?,
            matrix_cycles,
        }))
    }

    fn inner_loop_body(&self) -> Option<Vec<&str>> {
        let lines: Vec<&str> = self.text.lines().collect();
        let loops = loops(&lines);
        let matrix = |&(start, end): &(usize, usize)| {
            lines[start..end]
                .iter()
                .filter_map(|l| instruction(l))
                .filter(|i| is_matrix(opcode(i)))
                .count()
        };
        let all: Vec<_> = loops.iter().map(|span| (*span, matrix(span))).collect();
        let any = all.iter().any(|&(_, matrix)| matrix > 0);
        let candidates = all.iter().filter(|(_, matrix)| !any || *matrix > 0);
        let innermost = candidates.clone().filter(|(outer, _)| {
            let inside =
                |inner: &(usize, usize)| outer.0 <= inner.0 && inner.1 <= outer.1 && inner != outer;
            !candidates.clone().any(|(inner, _)| inside(inner))
        });
        let length = |(start, end): (usize, usize)| end - start;
        let best = match any {
            true => innermost.max_by_key(|(span, matrix)| (*matrix, usize::MAX - length(*span))),
            false => innermost.max_by_key(|(span, _)| length(*span)),
        };
        let (start, end) = best?.0;
        let body = lines[start..end]
            .iter()
            .filter_map(|line| instruction(line));
        Some(body.filter(|i| !is_branch(opcode(i))).collect())
    }

    /// Cycles of one iteration, by llvm-mca.
    fn cycles(&self, body: &[&str]) -> Result<f64> {
        const ITERATIONS: u32 = 4;
        let folder = tools::cache()?;
        let input = Scratch::new(&folder);
        input.write((body.join("\n") + "\n").as_bytes())?;
        let mut command = Command::new(tools::llvm_mca()?);
        command
            .args([
                "-mtriple=amdgcn-amd-amdhsa",
                "-instruction-info=false",
                "-resource-pressure=false",
            ])
            .arg(format!("-mcpu={}", self.target.name()))
            .arg(format!("-iterations={ITERATIONS}"))
            .arg(input.path());
        let ended = tools::run(&mut command, &folder, Duration::from_secs(120))?;
        let total = ended
            .output
            .lines()
            .find_map(|line| line.strip_prefix("Total Cycles:"));
        let total: Option<f64> = total.and_then(|cycles| cycles.trim().parse().ok());
        match total {
            Some(cycles) => Ok(cycles / f64::from(ITERATIONS)),
            None => Err(Error::Tool(format!(
                "llvm-mca cannot time the loop:\n{}",
                ended.output
            ))),
        }
    }
}

/// The lines between each label and the last branch back to it.
fn loops(lines: &[&str]) -> Vec<(usize, usize)> {
    let mut labels = BTreeMap::new();
    let mut loops = BTreeMap::new();
    for (at, line) in lines.iter().enumerate() {
        if let Some((label, _)) = line
            .split_once(':')
            .filter(|(label, _)| label.starts_with(".L"))
        {
            labels.insert(label, at);
        } else if let Some(branch) = instruction(line).filter(|i| is_branch(opcode(i)))
            && let Some(start) = branch
                .split_whitespace()
                .nth(1)
                .and_then(|label| labels.get(label))
        {
            loops.insert(*start, at);
        }
    }
    loops.into_iter().collect()
}

/// The instruction on a line, without its comment; `None` for directives, labels and empty lines.
fn instruction(line: &str) -> Option<&str> {
    let code = line.split(';').next().unwrap_or_default().trim();
    let other = code.is_empty() || code.starts_with('.') || code.ends_with(':');
    // The metadata behind the instructions is indented by blanks.
    (!other && line.starts_with('\t')).then_some(code)
}

fn opcode(instruction: &str) -> &str {
    instruction.split_whitespace().next().unwrap_or_default()
}

fn is_matrix(opcode: &str) -> bool {
    opcode.starts_with("v_mfma") || opcode.starts_with("v_wmma")
}

fn is_branch(opcode: &str) -> bool {
    opcode.starts_with("s_branch") || opcode.starts_with("s_cbranch")
}

/// The instruction of the table that an opcode is: `v_mfma_f32_32x32x8f16`, on gfx942 `v_mfma_f32_32x32x8_f16`.
fn of_opcode(opcode: &str) -> Option<&'static Instruction> {
    let shape = |name: &str| name.replace('_', "").trim_end_matches("1k").to_owned();
    let wanted = shape(opcode.strip_prefix("v_mfma_")?);
    INSTRUCTIONS
        .iter()
        .find(|instruction| match instruction.unit {
            Unit::Mfma { builtin, .. } => builtin
                .strip_prefix("__builtin_amdgcn_mfma_")
                .is_some_and(|name| shape(name) == wanted),
            _ => false,
        })
}

/// Bytes a lane of an access, by the end of its opcode: `dwordx4`, `ushort`, `b128`, `d16_b16`.
fn width(what: &str) -> usize {
    let name = what
        .trim_start_matches("short_d16")
        .trim_start_matches("d16_");
    match name {
        _ if what.starts_with("short_d16") => 2,
        "dwordx4" | "b128" => 16,
        "dwordx3" | "b96" => 12,
        "dwordx2" | "b64" => 8,
        "dword" | "b32" => 4,
        "ushort" | "sshort" | "short" | "b16" | "u16" | "i16" | "hi_b16" => 2,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assembly(lines: &[&str]) -> Assembly {
        let text = lines.iter().map(|line| match line.ends_with(':') {
            true => format!("{line}  ; %bb\n"),
            false => format!("\t{line} ; comment\n"),
        });
        Assembly::new(Target::Gfx90a, text.collect())
    }

    #[test]
    fn every_width_of_an_access_is_known() {
        let bytes = [
            ("global_load_dwordx4", 16),
            ("global_load_dwordx3", 12),
            ("global_load_dwordx2", 8),
            ("global_load_dword", 4),
            ("global_load_ushort", 2),
            ("global_load_short_d16", 2),
            ("global_load_short_d16_hi", 2),
            ("global_load_ubyte", 1),
            ("global_load_b128", 16),
            ("global_load_b32", 4),
            ("global_load_u16", 2),
            ("global_load_d16_b16", 2),
            ("global_load_d16_hi_b16", 2),
            ("global_load_u8", 1),
        ];
        for (opcode, bytes) in bytes {
            let loaded = assembly(&[&format!("{opcode} v0, v1, s[0:1]")]).traffic();
            assert_eq!(
                (loaded.loads, loaded.loaded, loaded.stores),
                (1, bytes, 0),
                "{opcode}"
            );
            let store = opcode.replace("load", "store");
            let stored = assembly(&[&format!("{store} v0, v1, s[0:1]")]).traffic();
            assert_eq!(
                (stored.stores, stored.stored, stored.loads),
                (1, bytes, 0),
                "{store}"
            );
        }
    }

    #[test]
    fn every_matrix_opcode_is_found_in_the_table() {
        let opcodes = [
            ("v_mfma_f32_32x32x8f16", Target::Gfx90a, 16),
            ("v_mfma_f32_32x32x8_f16", Target::Gfx942, 8),
            ("v_mfma_f32_16x16x16bf16_1k", Target::Gfx90a, 8),
            ("v_mfma_f32_16x16x16_bf16", Target::Gfx942, 4),
            ("v_mfma_f32_16x16x4f32", Target::Gfx90a, 8),
            ("v_mfma_f64_16x16x4_f64", Target::Gfx942, 8),
            ("v_mfma_i32_32x32x8i8", Target::Gfx90a, 16),
            ("v_mfma_i32_16x16x32_i8", Target::Gfx942, 4),
        ];
        for (opcode, target, passes) in opcodes {
            let found = of_opcode(opcode).and_then(|instruction| instruction.passes(target));
            assert_eq!(found, Some(passes), "{opcode}");
        }
        assert!(of_opcode("v_mfma_f32_4x4x4f16").is_none());
    }

    #[test]
    fn the_inner_loop_is_the_innermost_one_with_the_most_matrix_instructions() {
        let mfma = "v_mfma_f32_16x16x16f16 a[0:3], v[0:1], v[2:3], a[0:3]";
        let text = assembly(&[
            ".LBB0_1:",
            "v_mov_b32_e32 v0, v1",
            ".LBB0_2:",
            mfma,
            mfma,
            "s_cbranch_scc1 .LBB0_2",
            mfma,
            "s_cbranch_scc1 .LBB0_1",
            ".LBB0_3:",
            mfma,
            "s_cbranch_scc1 .LBB0_3",
            "s_endpgm",
        ]);
        assert_eq!(text.inner_loop_body(), Some(vec![mfma, mfma]));
        let found = text.inner_loop().unwrap().unwrap();
        assert_eq!(
            (found.instructions, found.matrix, found.matrix_cycles),
            (2, 2, 16)
        );
        assert!(
            found.cycles > 0.0 && found.matrix_share().unwrap() <= 1.0,
            "{found:?}"
        );
    }

    #[test]
    fn a_text_without_matrix_instructions_has_its_longest_loop_and_one_without_loops_none() {
        let plain = "v_add_f32_e32 v0, v1, v2";
        let text = assembly(&[
            ".LBB0_1:",
            plain,
            plain,
            "s_cbranch_vccnz .LBB0_1",
            ".LBB0_2:",
            plain,
            "s_branch .LBB0_2",
        ]);
        assert_eq!(text.inner_loop_body(), Some(vec![plain, plain]));
        assert_eq!(text.inner_loop().unwrap().unwrap().matrix_share(), None);
        assert_eq!(
            assembly(&[plain, "s_cbranch_scc1 .LBB0_9", ".LBB0_9:"])
                .inner_loop()
                .unwrap(),
            None
        );
    }
}
