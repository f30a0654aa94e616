//! The folder that a run writes to.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use burn_frontier::checkpoint::Checkpoint;

use crate::options::Options;
use crate::settings::Settings;

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

/// Makes room for a new run: an older run in the folder is kept beside it.
pub fn prepare(out: &Path) -> Result<()> {
    if out.join("checkpoints").exists() {
        let aside = (1..)
            .map(|i| PathBuf::from(format!("{}-{i}", out.display())))
            .find(|path| !path.exists())
            .context("no free name for the older run")?;
        std::fs::rename(out, &aside)
            .with_context(|| format!("cannot move the older run in {} aside", out.display()))?;
        say!("the run before is kept in {}", aside.display());
    }
    std::fs::create_dir_all(out)
        .with_context(|| format!("cannot make the folder {}", out.display()))
}

/// Keeps the options beside the run, so that `--config` repeats it.
pub fn write_config(options: &Options, settings: &Settings) -> Result<()> {
    let path = settings.out.join("config.toml");
    let mut options = options.clone();
    // A run that goes on for more steps keeps its schedule.
    let total = settings.rate.total;
    options.decay_steps = (total != settings.steps).then_some(total);
    options.resume = false;
    // Done once, not again when the run is continued.
    (options.import, options.export) = (None, None);
    let text = toml::to_string(&options).context("cannot write down the options")?;
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}
