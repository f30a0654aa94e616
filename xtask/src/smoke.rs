//! The main job as a user types it: train, resume, plan, and configurations that cannot run; and the kernels' benchmark.

use std::fs;
use std::path::Path;
use std::process::Output;

use anyhow::{Context, Result, bail, ensure};

use crate::cargo::Cargo;

/// The example that is run.
const EXAMPLE: &str = "gpt_1t";
/// The example of a Burn module.
const OWN_MODEL: &str = "own_model";
/// Steps of the first run, and of the one that it suggests.
const STEPS: [usize; 2] = [20, 40];
/// What stands above the commands that a run suggests.
const SUGGESTIONS: &str = "to try next:";
/// The log with one line a step.
const METRICS: &str = "metrics.jsonl";
/// What a finished run leaves in its folder; a final `*` stands for the rest of a name.
const ARTEFACTS: [&str; 5] = [
    METRICS,
    "loss.svg",
    "pipeline.svg",
    "trace.json",
    "checkpoints/step-*",
];
/// The file of figures that the kernels' benchmark leaves, the column with times in it, and its plot.
const FIGURES: (&str, &str, &str) = ("kernels.csv", "seconds", "kernels.svg");
/// A job that no machine here could run, to be planned, and the files that its plan leaves.
const PLAN: [&str; 8] = [
    "--plan",
    "--what-if",
    "--model",
    "1t",
    "--machine",
    "frontier",
    "--nodes",
    "384",
];
const PLANNED: [&str; 2] = ["plan.html", "plan.json"];
/// Configurations that cannot run, and the word that each message must hold.
const INVALID: [(&[&str], &str); 6] = [
    (&["--tp", "3"], "tp"),
    (&["--plan", "--tp", "3"], "tp"),
    (&["--zero", "2"], "--zero 0"),
    (
        &["--plan", "--what-if", "--nodes", "4", "--zero", "2"],
        "--zero 0",
    ),
    (&["--model", "1t"], "GiB"),
    (&["--kv-heads", "2", "--export", "exported"], "--export"),
];
/// The exit code of a Rust program that panicked.
const PANICKED: i32 = 101;

/// Trains in a temporary folder, resumes there, plans, checks that invalid configurations are refused, and benches every kernel once.
pub fn run(cargo: &Cargo) -> Result<()> {
    let folder = tempfile::tempdir().context("cannot create a temporary folder")?;
    let out = folder
        .path()
        .to_str()
        .context("the temporary folder's name is not UTF-8")?;
    let steps = STEPS[0].to_string();
    let output = cargo.output(&example(&["--steps", &steps, "--out", out]))?;
    let text = String::from_utf8_lossy(&output.stdout);
    print!("{text}");
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    ensure!(
        output.status.success(),
        "{EXAMPLE} failed: {}",
        output.status
    );
    check_artefacts(folder.path(), STEPS[0])?;
    cargo.run(&suggested(&text)?)?;
    check_artefacts(folder.path(), STEPS[1])?;
    let mut plan = PLAN.to_vec();
    plan.extend(["--out", out]);
    cargo.run(&example(&plan))?;
    for name in PLANNED {
        ensure!(
            exists(folder.path(), name)?,
            "{EXAMPLE} --plan left no {name}"
        );
    }
    for (arguments, word) in INVALID {
        // --quiet leaves standard error to the program.
        let mut command = vec!["run", "--quiet"];
        command.extend(&example(arguments)[1..]);
        check_refusal(&cargo.output(&command)?, word)?;
    }
    check_folder_of_others(cargo, &folder.path().join("mine"))?;
    own_model(cargo, &folder.path().join("own"))?;
    bench(cargo, out, folder.path())
}

/// Trains the model of one's own, and goes on with more replicas.
fn own_model(cargo: &Cargo, folder: &Path) -> Result<()> {
    let out = folder.to_str().context("the folder's name is not UTF-8")?;
    for (dp, steps) in [("2", STEPS[0]), ("4", STEPS[1])] {
        let mut command = vec!["run", "--example", OWN_MODEL, "--"];
        command.extend(["--dp", dp, "--steps", "20", "--out", out]);
        cargo.run(&command)?;
        for artefact in ["loss.svg", "checkpoints/step-*"] {
            ensure!(exists(folder, artefact)?, "{OWN_MODEL} left no {artefact}");
        }
        check_log(folder, steps)?;
    }
    Ok(())
}

/// A folder with a user's own file is refused, and stays as it is, although it has checkpoints as a run has.
fn check_folder_of_others(cargo: &Cargo, mine: &Path) -> Result<()> {
    let (checkpoints, notes) = (mine.join("checkpoints"), mine.join("notes.txt"));
    fs::create_dir_all(&checkpoints)?;
    fs::write(&notes, "mine")?;
    let out = mine.to_str().context("the folder's name is not UTF-8")?;
    let mut command = vec!["run", "--quiet"];
    command.extend(&example(&["--steps", "1", "--out", out])[1..]);
    check_refusal(&cargo.output(&command)?, "not the folder of a run")?;
    ensure!(
        fs::read_dir(mine)?.count() == 2 && checkpoints.is_dir() && notes.is_file(),
        "{EXAMPLE} refused the folder of others, and changed it"
    );
    Ok(())
}

/// Benches every kernel at a tiny shape. The dev profile is what is compiled already.
fn bench(cargo: &Cargo, out: &str, folder: &Path) -> Result<()> {
    let mut command = vec!["bench", "--profile", "dev", "--bench", "kernels", "--"];
    command.extend(["--quick", "--device", "cpu", "--out", out]);
    cargo.run(&command)?;
    let (figures, _, plot) = FIGURES;
    ensure!(exists(folder, plot)?, "the benchmark left no {plot}");
    check_figures(&fs::read_to_string(folder.join(figures))?)
}

/// Both ceilings and at least one kernel have a time.
fn check_figures(csv: &str) -> Result<()> {
    let (file, name, _) = FIGURES;
    let mut lines = csv.lines().map(|line| line.split(','));
    let header = lines
        .next()
        .and_then(|mut columns| columns.position(|column| column == name));
    let column = header.with_context(|| format!("{file} has no column '{name}'"))?;
    let mut count = 0;
    for mut line in lines {
        let time = line.nth(column).and_then(|time| time.parse().ok());
        ensure!(
            time.is_some_and(|time: f64| time > 0.0),
            "line {} of {file} has no time above zero",
            count + 2
        );
        count += 1;
    }
    ensure!(
        count > 2,
        "{file} has {count} lines of figures; two ceilings and a kernel are expected"
    );
    Ok(())
}

fn example<'a>(arguments: &[&'a str]) -> Vec<&'a str> {
    let mut all = vec!["run", "--example", EXAMPLE, "--"];
    all.extend(arguments);
    all
}

/// What Cargo is given by the first command that a run suggests.
fn suggested(text: &str) -> Result<Vec<&str>> {
    let (_, lines) = text
        .split_once(SUGGESTIONS)
        .with_context(|| format!("{EXAMPLE} suggests nothing"))?;
    let line = lines.trim_start().lines().next().unwrap_or_default();
    let command = line.split('#').next().unwrap_or_default();
    let mut words = command.split_whitespace();
    ensure!(
        words.next() == Some("cargo"),
        "{EXAMPLE} was started by Cargo, and suggests `{line}`"
    );
    Ok(words.collect())
}

/// Every artefact is there and holds something, and the log has a line for each of the `steps`.
fn check_artefacts(folder: &Path, steps: usize) -> Result<()> {
    for artefact in ARTEFACTS {
        ensure!(
            exists(folder, artefact)?,
            "{EXAMPLE} left no {artefact}, or an empty one"
        );
    }
    check_log(folder, steps)
}

/// The log has a line for each of the `steps`.
fn check_log(folder: &Path, steps: usize) -> Result<()> {
    let log = fs::read_to_string(folder.join(METRICS))?;
    let lines = log.lines().count();
    ensure!(
        lines == steps,
        "{METRICS} has {lines} lines after {steps} steps; one line a step is expected, across resumed runs"
    );
    Ok(())
}

/// Whether `pattern` names a file or folder in `folder` that is not empty.
fn exists(folder: &Path, pattern: &str) -> Result<bool> {
    let (parent, name) = pattern.rsplit_once('/').unwrap_or((".", pattern));
    let parent = folder.join(parent);
    if !parent.is_dir() {
        return Ok(false);
    }
    for entry in fs::read_dir(&parent)? {
        let entry = entry?;
        let found = entry.file_name();
        let found = found.to_string_lossy();
        let matches = match name.strip_suffix('*') {
            Some(start) => found.starts_with(start),
            None => found == name,
        };
        if matches && !is_empty(&entry.path())? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn is_empty(path: &Path) -> Result<bool> {
    Ok(if path.is_dir() {
        fs::read_dir(path)?.next().is_none()
    } else {
        fs::metadata(path)?.len() == 0
    })
}

/// The program ended by itself, with an error code and a message that holds `word`.
fn check_refusal(output: &Output, word: &str) -> Result<()> {
    let message = String::from_utf8_lossy(&output.stderr);
    match output.status.code() {
        Some(0) => bail!("{EXAMPLE} accepted an invalid configuration; it must exit with an error"),
        Some(PANICKED) | None => {
            bail!("{EXAMPLE} crashed on an invalid configuration: {message}")
        }
        Some(_) => ensure!(
            message.contains(word),
            "{EXAMPLE} refused an invalid configuration without naming `{word}`: {message}"
        ),
    }
    Ok(())
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    fn ended(code: i32, message: &str) -> Output {
        Output {
            status: ExitStatus::from_raw(code << 8),
            stdout: Vec::new(),
            stderr: message.as_bytes().to_vec(),
        }
    }

    #[test]
    fn a_refusal_needs_an_error_code_and_a_message() {
        assert!(check_refusal(&ended(1, "error: tp = 3 does not divide 8 heads"), "tp").is_ok());
        assert!(check_refusal(&ended(0, "tp"), "tp").is_err());
        assert!(check_refusal(&ended(1, ""), "tp").is_err());
        assert!(check_refusal(&ended(PANICKED, "panicked: tp"), "tp").is_err());
    }

    #[test]
    fn the_first_suggestion_is_run_as_printed() {
        let text = "a\n\nto try next:\n  cargo run -- --resume --steps 4  # on\n  cargo run\n";
        assert_eq!(
            suggested(text).unwrap(),
            ["run", "--", "--resume", "--steps", "4"]
        );
        assert!(suggested("to try next:\n  --resume --steps 4").is_err());
        assert!(suggested("nothing").is_err());
    }

    #[test]
    fn figures_need_a_time_above_zero_for_ceilings_and_kernels() {
        let csv = "kernel,seconds\nceiling_product,1e-3\nceiling_copy,2e-3\nlinear,3e-3\n";
        check_figures(csv).unwrap();
        let refused = |csv: &str| check_figures(csv).unwrap_err().to_string();
        assert!(refused(&csv.replace("3e-3", "0")).contains("line 4"));
        assert!(refused(&csv.replace("linear,3e-3\n", "")).contains("2 lines"));
        assert!(refused(&csv.replace("seconds", "time")).contains("seconds"));
    }

    #[test]
    fn artefacts_are_missed_when_absent_empty_or_short() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir_all(path("checkpoints/step-00000020")).unwrap();
        for artefact in &ARTEFACTS[..4] {
            fs::write(path(artefact), "{}\n{}\n").unwrap();
        }
        let missing = check_artefacts(folder.path(), 2).unwrap_err().to_string();
        assert!(missing.contains("checkpoints/step-*"), "{missing}");
        fs::write(path("checkpoints/step-00000020/manifest.json"), "{}").unwrap();
        check_artefacts(folder.path(), 2).unwrap();
        assert!(check_artefacts(folder.path(), 3).is_err());
        fs::write(path("loss.svg"), "").unwrap();
        assert!(check_artefacts(folder.path(), 2).is_err());
    }
}
