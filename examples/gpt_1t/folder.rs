//! The folder that a run writes to.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use burn_frontier::checkpoint::Checkpoint;
use burn_frontier::run_folder::RunFolder;

use crate::options::Options;
use crate::settings::Settings;

/// Takes the run's folder for this process, and finds the checkpoint to continue from. An older run stays where it is as yet.
pub fn claim(options: &Options) -> Result<(RunFolder, Option<Checkpoint>)> {
    let out = options.out();
    let folder = match options.resume {
        true => RunFolder::resume(&out).context("--out, --resume")?,
        false => RunFolder::claim(&out).context("--out")?,
    };
    Ok((folder, resumed(options)?))
}

/// The checkpoint that --resume goes on from.
pub fn resumed(options: &Options) -> Result<Option<Checkpoint>> {
    if !options.resume {
        return Ok(None);
    }
    let out = options.out();
    let found = Checkpoint::newest(&out.join("checkpoints"))?;
    if found.is_none() {
        bail!(
            "there is no checkpoint in {} to resume from; leave out --resume, or name the run's folder with --out",
            out.display()
        );
    }
    Ok(found)
}

/// Begins the run, now that nothing can be refused any more: an older one is kept beside it.
pub fn start(folder: &mut RunFolder, options: &Options, settings: &Settings) -> Result<()> {
    if let Some(kept) = folder.start()? {
        let here = std::env::current_dir().and_then(|here| here.canonicalize());
        let short = here
            .ok()
            .and_then(|here| Some(kept.strip_prefix(here).ok()?.to_path_buf()));
        say!(
            "the run before is kept in {}",
            short.unwrap_or(kept).display()
        );
    }
    write_config(options, settings)
}

/// Keeps the options beside the run, so that `--config` repeats it, from any folder.
fn write_config(options: &Options, settings: &Settings) -> Result<()> {
    let path = settings.out.join("config.toml");
    let mut options = options.clone();
    // A run that goes on for more steps keeps its schedule.
    let total = settings.rate.total;
    options.steps = Some(settings.steps);
    options.decay_steps = (total != settings.steps).then_some(total);
    if options.resume {
        // A resumed run takes nothing from the file again, but a repeated one does.
        options.import = Options::of_run(&settings.out)
            .ok()
            .and_then(|run| run.import);
    }
    options.export = None; // Done once, not again when the run is continued.
    for file in [
        &mut options.data,
        &mut options.tokenizer,
        &mut options.import,
    ] {
        *file = file.take().map(absolute);
    }
    options.resume = false;
    let text = toml::to_string(&options).context("cannot write down the options")?;
    // A kill leaves the options of before, not half of these.
    let partial = settings.out.join("config.toml.partial");
    std::fs::write(&partial, text)
        .and_then(|()| std::fs::rename(&partial, &path))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// The path as it is called from everywhere; the file need not exist.
pub fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}
