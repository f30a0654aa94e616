//! The static figures of every kernel, as the table `kernels/isa.md`: a ratchet that may improve and not worsen unnoticed.

use std::fmt::{self, Write};

use crate::error::Result;
use crate::hip::compile::compile;
use crate::hip::emit::Source;
use crate::hip::text::widest_insertion;

/// The figures of a kernel.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The kernel's name in the catalog, which ends with its target.
    pub kernel: String,
    /// The figures, in the order of [`COLUMNS`]; `None` where the kernel has no such thing.
    pub figures: [Option<f64>; COLUMNS.len()],
}

/// A figure of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Column {
    /// Its heading.
    pub name: &'static str,
    /// Which change is for the worse.
    pub better: Better,
}

/// Which change of a figure is an improvement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    /// A smaller figure.
    Less,
    /// A larger figure.
    More,
    /// None, but it must not fall to nothing.
    Present,
    /// None: it explains others.
    Neither,
}

const fn column(name: &'static str, better: Better) -> Column {
    Column { name, better }
}

/// The figures of a row.
pub const COLUMNS: [Column; 11] = [
    column("registers", Better::Less),
    column("AGPRs", Better::Neither),
    column("SGPRs", Better::Neither),
    column("LDS", Better::Less),
    column("occupancy", Better::More),
    column("instructions", Better::Neither),
    column("matrix", Better::Present),
    column("loop instructions", Better::Neither),
    column("loop matrix", Better::Neither),
    column("loop cycles", Better::Less),
    column("matrix share %", Better::More),
];
/// Where the loop's matrix instructions stand, and its cycles.
const LOOP_MATRIX: usize = 8;
const LOOP_CYCLES: usize = 9;

/// What of a kernel can never be right, and its row.
#[derive(Debug, Clone, PartialEq)]
pub struct Checked {
    /// The figures.
    pub row: Row,
    /// Each fault, as a sentence.
    pub faults: Vec<String>,
}

/// Compiles `source` and reads its figures.
///
/// # Errors
/// A text that does not compile, or a program that is missing.
pub fn check(source: &Source) -> Result<Checked> {
    let compiled = compile(source)?;
    let (assembly, usage) = (&compiled.assembly, &compiled.usage);
    let matrix = assembly.matrix();
    let mut faults = Vec::new();
    let mut require = |holds: bool, fault: String| {
        if !holds {
            faults.push(format!("{}: {fault}", source.name));
        }
    };
    let asks = ["_mfma_", "_wmma_"]
        .iter()
        .any(|builtin| source.text.contains(builtin));
    require(
        matrix > 0 || !asks,
        "its matrix instructions are not in the assembly".into(),
    );
    require(
        usage.scratch == 0,
        format!("{} bytes of scratch memory a lane", usage.scratch),
    );
    require(
        usage.spills == 0,
        format!("{} registers are spilled", usage.spills),
    );
    let (used, most) = (usage.shared_memory, source.target.shared_memory());
    require(used <= most, format!("{used} bytes of LDS, of {most}"));
    let lanes = widest_insertion(&source.text);
    let remedy = "clang takes exponential time; use matrix::vector::from_elements";
    require(
        lanes < 8,
        format!("a vector of {lanes} lanes is built lane by lane: {remedy}"),
    );
    let inner = assembly.inner_loop()?;
    let count = |n: usize| Some(n as f64);
    let figures = [
        count(usage.registers()),
        count(usage.agprs),
        count(usage.sgprs),
        count(usage.shared_memory),
        Some(usage.occupancy),
        count(assembly.opcodes().values().sum()),
        count(matrix),
        inner.and_then(|l| count(l.instructions)),
        inner.and_then(|l| count(l.matrix)),
        inner.map(|l| l.cycles.round()),
        inner
            .and_then(|l| l.matrix_share())
            .map(|share| (share * 1000.0).round() / 10.0),
    ];
    Ok(Checked {
        row: Row {
            kernel: source.name.clone(),
            figures,
        },
        faults,
    })
}

/// The table as it is committed.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Table {
    /// The compiler that the figures are from.
    pub compiler: String,
    /// One row a kernel, in order of name.
    pub rows: Vec<Row>,
}

const HEAD: &str = "# Static figures of every kernel

Written by `cargo xtask hip --update`; `cargo xtask hip` compares. No GPU was asked: registers, LDS and occupancy (waves a
SIMD) are what the compiler allots, cycles are llvm-mca's model of one iteration of the inner loop without memory latency
(on CDNA a cycle is the four clocks of one pass), and the matrix share is the part of them in which the matrix unit works.

Compiler: ";

impl Table {
    /// Reads a table that [`Table`]'s `Display` wrote.
    pub fn parse(text: &str) -> Self {
        let compiler = text
            .lines()
            .find_map(|line| line.strip_prefix("Compiler: "));
        let rows = text.lines().filter_map(Row::parse).collect();
        Self {
            compiler: compiler.unwrap_or_default().to_owned(),
            rows,
        }
    }

    /// Puts `rows` in the place of those of the same name, and leaves the others.
    pub fn update(&mut self, rows: Vec<Row>) {
        self.rows
            .retain(|old| rows.iter().all(|new| new.kernel != old.kernel));
        self.rows.extend(rows);
        self.rows.sort_by(|a, b| a.kernel.cmp(&b.kernel));
    }

    /// The row of a kernel.
    pub fn row(&self, kernel: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.kernel == kernel)
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = COLUMNS.iter().map(|column| column.name).collect();
        writeln!(f, "{HEAD}{}\n", self.compiler)?;
        writeln!(f, "| kernel | {} |", names.join(" | "))?;
        writeln!(f, "|---|{}", "---:|".repeat(COLUMNS.len()))?;
        self.rows.iter().try_for_each(|row| writeln!(f, "{row}"))
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "| {} |", self.kernel)?;
        self.figures.iter().try_for_each(|figure| match figure {
            Some(figure) => write!(f, " {figure} |"),
            None => f.write_str(" - |"),
        })
    }
}

impl Row {
    fn parse(line: &str) -> Option<Self> {
        let mut cells = line.strip_prefix("| ")?.split('|').map(str::trim);
        let kernel = cells.next()?.to_owned();
        let mut figures = [None; COLUMNS.len()];
        for figure in &mut figures {
            let cell = cells.next()?;
            *figure = match cell {
                "-" => None,
                cell => Some(cell.parse().ok()?),
            };
        }
        Some(Self { kernel, figures })
    }

    /// How this row differs from an older one of the same kernel, for the worse and for the better.
    pub fn changes(&self, old: &Row) -> Changes {
        let mut changes = Changes::default();
        // Cycles compare only if an iteration does the same work.
        let same_work = self.figures[LOOP_MATRIX] == old.figures[LOOP_MATRIX];
        for (at, column) in COLUMNS.iter().enumerate() {
            let (before, now) = (old.figures[at], self.figures[at]);
            if before == now || (at == LOOP_CYCLES && !same_work) {
                continue;
            }
            let list = match (column.better, before, now) {
                (Better::Neither, ..) => continue,
                (Better::Present, _, now) if now != Some(0.0) => continue,
                (Better::Less, Some(before), Some(now)) if now < before => &mut changes.better,
                (Better::More, Some(before), Some(now)) if now > before => &mut changes.better,
                (Better::More, None, Some(_)) => &mut changes.better,
                _ => &mut changes.worse,
            };
            let mut change = format!("{}: {}", self.kernel, column.name);
            for (word, figure) in [("was", before), ("is", now)] {
                let figure = figure.map_or("none".to_owned(), |figure| figure.to_string());
                // Writing to a String cannot fail.
                let _ = write!(change, " {word} {figure}");
            }
            list.push(change);
        }
        changes
    }
}

/// Differences between two rows, each as a sentence.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// What got worse.
    pub worse: Vec<String>,
    /// What got better.
    pub better: Vec<String>,
}

impl Changes {
    /// Appends those of another kernel.
    pub fn extend(&mut self, others: Self) {
        self.worse.extend(others.worse);
        self.better.extend(others.better);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(kernel: &str) -> Row {
        let figures = [
            128.0, 64.0, 20.0, 16384.0, 3.0, 900.0, 64.0, 300.0, 64.0, 1200.0, 85.5,
        ];
        Row {
            kernel: kernel.into(),
            figures: figures.map(Some),
        }
    }

    #[test]
    fn a_table_is_read_as_it_was_written() {
        let mut norm = row("norm_gfx90a");
        norm.figures[7..].fill(None);
        let mut table = Table {
            compiler: "clang 19.1.7".into(),
            rows: vec![],
        };
        table.update(vec![norm.clone(), row("gemm_gfx90a")]);
        assert_eq!(Table::parse(&table.to_string()), table);
        assert_eq!(table.rows, [row("gemm_gfx90a"), norm]);
        let faster = Row {
            figures: [Some(1.0); COLUMNS.len()],
            ..row("gemm_gfx90a")
        };
        table.update(vec![faster.clone()]);
        assert_eq!(table.row("gemm_gfx90a"), Some(&faster));
        assert_eq!(table.rows.len(), 2);
    }

    #[test]
    fn a_change_for_the_worse_names_both_figures() {
        let old = row("gemm_gfx90a");
        let changed = |at: usize, figure: Option<f64>| {
            let mut new = old.clone();
            new.figures[at] = figure;
            new.changes(&old)
        };
        assert_eq!(
            changed(0, Some(130.0)).worse,
            ["gemm_gfx90a: registers was 128 is 130"]
        );
        assert_eq!(
            changed(0, Some(120.0)).better,
            ["gemm_gfx90a: registers was 128 is 120"]
        );
        assert_eq!(changed(4, Some(2.0)).worse.len(), 1);
        assert_eq!(
            changed(10, None).worse,
            ["gemm_gfx90a: matrix share % was 85.5 is none"]
        );
        assert_eq!(changed(10, Some(90.0)).better.len(), 1);
        assert_eq!(changed(6, Some(0.0)).worse.len(), 1);
        assert_eq!(changed(6, Some(32.0)), Changes::default());
        assert_eq!(changed(1, Some(0.0)), Changes::default());
    }

    #[test]
    fn cycles_are_compared_only_for_the_same_work() {
        let old = row("gemm_gfx90a");
        let mut new = old.clone();
        new.figures[LOOP_CYCLES] = Some(2000.0);
        assert_eq!(new.changes(&old).worse.len(), 1);
        new.figures[LOOP_MATRIX] = Some(128.0);
        assert_eq!(new.changes(&old), Changes::default());
    }
}
