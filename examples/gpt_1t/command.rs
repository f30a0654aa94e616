//! Command lines to be typed: the program as it was started, with other flags.

use burn_frontier::device::Choice;
use burn_frontier::models::gpt::GptConfig;
use burn_frontier::pipeline::schedule::Kind;

use crate::options::Options;
use crate::settings::Settings;

/// A line that runs this program, in the same folder, with these flags.
pub fn command<S: AsRef<str>>(flags: &[S]) -> String {
    let mut words = program();
    words.extend(flags.iter().map(|flag| flag.as_ref().to_owned()));
    let words: Vec<String> = words.iter().map(|word| quoted(word)).collect();
    words.join(" ")
}

/// A line that continues the run in the folder of these settings.
pub fn resume(settings: &Settings, flags: &[&str]) -> String {
    let out = settings.out.display().to_string();
    command(&[&["--resume", "--out", &out], flags].concat())
}

/// What to try behind a run, each with a word on what it is: whole command lines, of which every one can run.
pub fn suggestions(
    options: &Options,
    settings: &Settings,
    model: &GptConfig,
    device: &Choice,
) -> Vec<(String, &'static str)> {
    let steps = (2 * settings.steps).to_string();
    let mut lines = vec![(
        resume(settings, &["--steps", &steps]),
        "train on, at the last learning rate",
    )];
    let out = settings.out.display().to_string();
    let config = settings.out.join("config.toml").display().to_string();
    let tokens = settings.out.join("data").join("corpus");
    let layouts: [(&str, [usize; 3], Kind, bool, &str); 2] = [
        (
            "one-rank",
            [1, 1, 1],
            Kind::OneForwardOneBackward,
            false,
            "the same losses from one rank",
        ),
        (
            "eight-ranks",
            [2, 2, 2],
            Kind::Interleaved { chunks: 2 },
            true,
            "and from eight",
        ),
    ];
    for (name, [tp, pp, dp], schedule, sequence_parallel, what) in layouts {
        let mut other = options.clone();
        (other.tp, other.pp, other.dp) = (Some(tp), Some(pp), Some(dp));
        other.schedule = Some(schedule);
        other.sequence_parallel |= sequence_parallel;
        // So small that every stage of every replica has one.
        let most = settings.global_batch / (pp * dp) as u64;
        let micro_batch = settings.micro_batch.min(most.max(1));
        other.micro_batch = Some(micro_batch);
        let can_run = other.settings().is_ok_and(|other| {
            other.layout != settings.layout && other.validate(model, device).is_ok()
        });
        if !can_run {
            continue;
        }
        let mut words: Vec<String> = vec!["--config".into(), config.clone()];
        // The very tokens; a --key of JSONL does not go with them.
        if options.key.is_none() && tokens.with_extension("idx").exists() {
            words.extend(["--data".into(), tokens.display().to_string()]);
        }
        for (flag, n) in [("--tp", tp), ("--pp", pp), ("--dp", dp)] {
            words.extend([flag.into(), n.to_string()]);
        }
        if micro_batch != settings.micro_batch {
            words.extend(["--micro-batch".into(), micro_batch.to_string()]);
        }
        words.extend(["--schedule".into(), schedule.to_string()]);
        words.extend(sequence_parallel.then(|| "--sequence-parallel".into()));
        words.extend(["--out".into(), format!("{out}-{name}")]);
        lines.push((command(&words), what));
    }
    lines
}

/// How the program was started: by Cargo, which names itself to what it runs, or by its own name.
fn program() -> Vec<String> {
    if std::env::var_os("CARGO").is_none() {
        let name = std::env::args().next();
        return vec![name.unwrap_or_else(|| "gpt_1t".into())];
    }
    let mut words = vec!["cargo".to_owned(), "run".into()];
    if !cfg!(debug_assertions) {
        words.push("--release".into());
    }
    let features = [
        ("wgpu", cfg!(feature = "wgpu")),
        ("cuda", cfg!(feature = "cuda")),
        ("rocm", cfg!(feature = "rocm")),
        ("fusion", cfg!(feature = "fusion")),
    ];
    let enabled: Vec<&str> = features
        .iter()
        .filter_map(|&(name, enabled)| enabled.then_some(name))
        .collect();
    if !enabled.is_empty() {
        words.extend(["--features".into(), enabled.join(",")]);
    }
    words.extend(["--example", "gpt_1t", "--"].map(String::from));
    words
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let plain =
        |c: char| c.is_alphanumeric() || "-_./:=,+@".contains(c) || (cfg!(windows) && c == '\\');
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else if cfg!(windows) {
        format!("\"{word}\"")
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}
