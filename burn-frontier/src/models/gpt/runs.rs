//! Measured runs of GPTs, as a CSV file.

use std::path::Path;

use super::GptConfig;
use crate::error::{Error, Result};
use crate::mesh::Layout;
use crate::plan::Job;
use crate::plan::fit::Run;
use crate::precision::Precision;
use crate::recompute::Recompute;

/// Vocabulary of a run whose file does not say: GPT-2's, padded as Megatron-LM pads it.
pub const VOCABULARY: usize = 51200;

/// A column, by what its header must contain.
struct Column {
    name: &'static str,
    words: &'static [&'static str],
}

const COLUMNS: [Column; 10] = [
    Column {
        name: "global batch",
        words: &["global batch", "global_batch", "gbs"],
    },
    Column {
        name: "micro batch",
        words: &["micro batch", "micro_batch", "micro-batch", "mbs"],
    },
    Column {
        name: "hidden size",
        words: &["hidden"],
    },
    Column {
        name: "attention heads",
        words: &["head"],
    },
    Column {
        name: "layers",
        words: &["layer"],
    },
    Column {
        name: "sequence length",
        words: &["seq"],
    },
    Column {
        name: "tensor parallelism",
        words: &["tensor", "tp"],
    },
    Column {
        name: "data parallelism",
        words: &["data", "dp"],
    },
    Column {
        name: "pipeline parallelism",
        words: &["pipeline", "pp"],
    },
    Column {
        name: "iteration time",
        words: &["time", "iteration", "millisecond", "_ms", "(ms)"],
    },
];

/// Where the columns are.
struct Header<'a> {
    names: Vec<String>,
    path: &'a Path,
}

impl<'a> Header<'a> {
    fn new(line: &str, path: &'a Path) -> Self {
        let names = line.split(',').map(|name| name.trim().to_lowercase());
        Self {
            names: names.collect(),
            path,
        }
    }

    fn find(&self, words: &[&str]) -> Option<usize> {
        self.names
            .iter()
            .position(|name| words.iter().any(|word| name.contains(word)))
    }

    fn required(&self) -> Result<Vec<usize>> {
        COLUMNS
            .iter()
            .map(|column| {
                self.find(column.words).ok_or_else(|| {
                    let names: Vec<_> = COLUMNS.iter().map(|column| column.name).collect();
                    Error::format(
                        self.path,
                        format!("no column is named like '{}'", column.name),
                        format!("give a first line with the columns {}", names.join(", ")),
                    )
                })
            })
            .collect()
    }
}

/// Reads runs from `path`. Columns are recognised by the names in the first line, in any order. Besides those of
/// every run, `recompute` (none, selective, full; default full), `precision` (default fp16), `vocabulary` (default 51200)
/// and `zero` (default 0) are read where they are there. Gradients are taken as reduced after the backward pass.
///
/// # Errors
/// A file that cannot be read, a column that is missing, a value that is no number, or a run that cannot be.
pub fn read(path: &Path) -> Result<Vec<Run<GptConfig>>> {
    let text = crate::utf8::read(path)?;
    parse(&text, path)
}

/// Reads runs from the text of a CSV file; `path` is for messages.
///
/// # Errors
/// As [`read`].
pub fn parse(text: &str, path: &Path) -> Result<Vec<Run<GptConfig>>> {
    let mut lines = text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty());
    let Some((_, first)) = lines.next() else {
        return Err(Error::format(
            path,
            "the file is empty",
            "give a line of column names, then a line a run",
        ));
    };
    let header = Header::new(first, path);
    let required = header.required()?;
    let runs: Result<Vec<_>> = lines
        .map(|(number, line)| {
            let row = Row {
                cells: line.split(',').map(str::trim).collect(),
                number: number + 1,
                header: &header,
            };
            row.run(&required)
        })
        .collect();
    let runs = runs?;
    if runs.is_empty() {
        return Err(Error::format(
            path,
            "there is no run below the column names",
            "give a line a run",
        ));
    }
    Ok(runs)
}

struct Row<'a> {
    cells: Vec<&'a str>,
    number: usize,
    header: &'a Header<'a>,
}

impl Row<'_> {
    fn wrong(&self, what: String) -> Error {
        Error::format(
            self.header.path,
            format!("line {}: {what}", self.number),
            "correct the line, or leave it out",
        )
    }

    fn number(&self, column: usize) -> Result<f64> {
        let name = &self.header.names[column];
        let cell = self.cells.get(column).copied().unwrap_or_default();
        cell.parse::<f64>()
            .ok()
            .filter(|value| value.is_finite() && *value > 0.0)
            .ok_or_else(|| self.wrong(format!("'{cell}' is no positive number ({name})")))
    }

    fn count(&self, column: usize) -> Result<usize> {
        let value = self.number(column)?;
        if value.fract() != 0.0 {
            let name = &self.header.names[column];
            return Err(self.wrong(format!("{value} is no whole number ({name})")));
        }
        Ok(value as usize)
    }

    fn text(&self, words: &[&str]) -> Option<&str> {
        let cell = self.cells.get(self.header.find(words)?)?;
        (!cell.is_empty()).then_some(cell)
    }

    fn run(&self, columns: &[usize]) -> Result<Run<GptConfig>> {
        let count = |i: usize| self.count(columns[i]);
        let vocabulary = match self.text(&["vocab"]) {
            Some(text) => text
                .parse()
                .map_err(|_| self.wrong(format!("'{text}' is no vocabulary")))?,
            None => VOCABULARY,
        };
        let model = GptConfig::new(count(4)?, count(2)?, count(3)?, vocabulary, count(5)?);
        let layout = Layout {
            tp: count(6)?,
            pp: count(8)?,
            dp: count(7)?,
        }
        .validated()
        .map_err(|e| self.wrong(e.to_string()))?;
        let precision = match self.text(&["precision", "dtype"]) {
            Some(text) => text.parse().map_err(|e: Error| self.wrong(e.to_string()))?,
            None => Precision::Fp16,
        };
        let recompute = match self.text(&["recompute", "checkpoint"]) {
            Some(text) => text.parse().map_err(|e: Error| self.wrong(e.to_string()))?,
            None => Recompute::Full,
        };
        let zero = match self.text(&["zero"]) {
            Some(text) => text
                .parse()
                .map_err(|_| self.wrong(format!("'{text}' is no ZeRO stage")))?,
            None => 0,
        };
        let job = Job {
            global_batch: count(0)? as u64,
            micro_batch: count(1)? as u64,
            precision,
            recompute,
            zero,
            overlap: false,
            ..Job::new(model, layout)
        };
        job.validate().map_err(|e| self.wrong(e.to_string()))?;
        let seconds = 1e-3 * self.number(columns[9])?;
        Ok(Run { job, seconds })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "# GPUs,global batch,micro batch,hidden size,attention heads,# layers,sequence length,\
                          tensor parallelism,data parallelism,pipeline parallelism,iteration time (ms)";

    #[test]
    fn columns_are_recognised_by_name_in_any_order() {
        let runs = parse(
            &format!("{HEADER}\n8,16,2,1024,16,12,512,2,1,4,150.5\n"),
            Path::new("a.csv"),
        )
        .unwrap();
        let other = "Iteration Time (ms),pp,dp,tp,zero,seq,layers,heads,hidden,mbs,gbs\n150.5,4,1,2,1,512,12,16,1024,2,16\n";
        let again = parse(other, Path::new("b.csv")).unwrap();
        assert_eq!(
            runs[0].job.layout,
            Layout {
                tp: 2,
                pp: 4,
                ..Layout::single()
            }
        );
        assert_eq!(runs[0].job.model, again[0].job.model);
        assert_eq!(
            (runs[0].seconds, runs[0].job.zero, again[0].job.zero),
            (0.1505, 0, 1)
        );
    }

    #[test]
    fn what_is_no_run_is_refused_with_its_line() {
        let refuse = |rows: &str| parse(rows, Path::new("a.csv")).unwrap_err().to_string();
        assert!(refuse("").contains("empty"));
        assert!(refuse("a,b\n1,2\n").contains("global batch"));
        assert!(refuse(HEADER).contains("no run"));
        for row in [
            "8,16,2,1024,16,12,512,2,1,4,fast",
            "8,16,2,1024,16,12,512,3,1,4,1",
            "8,16",
        ] {
            let error = refuse(&format!("{HEADER}\n{row}\n"));
            assert!(error.contains("line 2"), "{error}");
        }
    }
}
