use tempfile::TempDir;

use super::*;

/// A new folder, and `run` in it.
fn place() -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let run = folder.path().canonicalize().unwrap().join("run");
    (folder, run)
}

fn put(folder: &Path, name: &str, text: &str) {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// A run that has ended.
fn ended(run: &Path) {
    let mut folder = RunFolder::claim(run).unwrap();
    folder.start().unwrap();
    put(run, "metrics.jsonl", "older");
    put(run, "checkpoints/step-00000001/manifest.json", "older");
}

fn refusal(path: &Path) -> String {
    RunFolder::claim(path).unwrap_err().to_string()
}

#[test]
fn a_second_run_is_refused_while_the_first_one_lives() {
    let (_folder, run) = place();
    let mut first = RunFolder::claim(&run).unwrap();
    for started in [false, true] {
        for error in [
            refusal(&run),
            RunFolder::resume(&run).unwrap_err().to_string(),
        ] {
            let process = format!("process {}", std::process::id());
            assert!(error.contains(&process), "{started}: {error}");
            assert!(error.contains("name another folder"), "{started}: {error}");
        }
        first.start().unwrap();
    }
    drop(first);
    RunFolder::claim(&run).unwrap();
}

#[test]
fn an_older_run_gives_way_only_when_the_new_one_starts() {
    let (_folder, run) = place();
    ended(&run);
    for name in ["run-1", "run-2"] {
        let mut folder = RunFolder::claim(&run).unwrap();
        put(&folder.staging(), "data/corpus.idx", "new");
        assert_eq!(
            fs::read_to_string(run.join("metrics.jsonl")).unwrap(),
            "older"
        );
        let kept = folder.start().unwrap().unwrap();
        assert_eq!(kept, run.with_file_name(name));
        assert_eq!(
            fs::read_to_string(kept.join("metrics.jsonl")).unwrap(),
            "older"
        );
        assert!(!kept.join(STAGING).exists());
        assert_eq!(names(&run).unwrap(), [MARK, "data"]);
        assert!(refusal(&run).contains("process"), "the new run is locked");
        RunFolder::claim(&kept).expect("the older one is not");
        put(&run, "metrics.jsonl", "older");
    }
}

#[test]
fn a_start_that_is_refused_leaves_everything_as_it_was() {
    let (folder, run) = place();
    let refused = |before: &[&str]| {
        let claimed = RunFolder::claim(&run).unwrap();
        put(&claimed.staging(), "data/corpus.bin", "half");
        drop(claimed);
        let now = if run.exists() {
            names(&run).unwrap()
        } else {
            Vec::new()
        };
        assert_eq!(now, before);
    };
    refused(&[]);
    assert!(!run.exists());
    fs::create_dir(&run).unwrap();
    refused(&[]);
    assert!(run.exists());
    ended(&run);
    refused(&[MARK, "checkpoints", "metrics.jsonl"]);
    assert_eq!(names(folder.path()).unwrap(), ["run"]);
}

#[test]
fn what_a_killed_start_left_is_no_part_of_the_next_one() {
    let (_folder, run) = place();
    mark(&run).unwrap();
    put(&run, ".starting/data/corpus.bin", "half");
    put(&run, ".starting/data/corpus.idx", "half");
    let mut folder = RunFolder::claim(&run).unwrap();
    assert_eq!(folder.start().unwrap(), None, "nothing was worth keeping");
    assert_eq!(names(&run).unwrap(), [MARK]);
}

#[test]
fn a_folder_that_is_no_run_is_neither_renamed_nor_written_to() {
    for content in [
        &["src/main.rs", "checkpoints/step-00000001/manifest.json"][..],
        &[
            "config.toml",
            "checkpoints/a.pt",
            "metrics.jsonl",
            "data/x.txt",
        ],
        &[".git/config"],
        &["a", "b", "c", "d"],
    ] {
        let (folder, run) = place();
        for name in content {
            put(&run, name, "{\"loss\": 1}\n");
        }
        let before = names(&run).unwrap();
        let errors = [
            refusal(&run),
            mark(&run).unwrap_err().to_string(),
            RunFolder::resume(&run).unwrap_err().to_string(),
        ];
        for error in &errors[..2] {
            assert!(error.contains("not the folder of a run"), "{error}");
            assert!(error.contains(&before[0]), "{error}");
        }
        assert!(errors[2].contains("no run in"), "{}", errors[2]);
        assert_eq!(names(&run).unwrap(), before);
        assert_eq!(names(folder.path()).unwrap(), ["run"]);
    }
    let (folder, run) = place();
    put(folder.path(), "run", "a file");
    assert!(refusal(&run).contains("is a file"), "{}", refusal(&run));
}

#[test]
fn what_runs_left_before_folders_were_marked_is_known() {
    let (_folder, run) = place();
    let record = crate::observe::metrics::StepRecord {
        step: 1,
        ..Default::default()
    };
    let line = serde_json::to_string(&record).unwrap();
    put(&run, "metrics.jsonl", &format!("{line}\n"));
    put(&run, "config.toml", "steps = 1\n");
    assert!(is_run(&run));
    drop(RunFolder::resume(&run).unwrap());
    let kept = RunFolder::claim(&run).unwrap().start().unwrap().unwrap();
    assert!(is_run(&kept));
    put(&kept, "thesis.tex", "mine");
    assert!(
        is_run(&kept),
        "it was marked, and people may put notes there"
    );
}

#[test]
fn a_plan_lies_in_the_folder_of_the_run_to_come() {
    let (_folder, run) = place();
    check(&run).unwrap();
    mark(&run).unwrap();
    for name in PLANS {
        put(&run, name, "plan");
    }
    let mut folder = RunFolder::claim(&run).unwrap();
    mark(&run).expect("a plan may be written beside a run");
    assert_eq!(folder.start().unwrap(), None);
    assert_eq!(names(&run).unwrap(), [MARK, "plan.html", "plan.json"]);
}

#[test]
fn a_trailing_slash_and_dots_in_a_name_change_nothing() {
    let (folder, run) = place();
    ended(&run);
    let named = folder.path().join("run/../run/");
    let kept = RunFolder::claim(&named).unwrap().start().unwrap().unwrap();
    assert_eq!(kept, run.with_file_name("run-1"));
}

#[cfg(unix)]
#[test]
fn a_linked_folder_is_renamed_where_it_lies() {
    let (folder, run) = place();
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(&run, &link).unwrap();
    assert!(
        refusal(&link).contains("link to nothing"),
        "{}",
        refusal(&link)
    );
    ended(&run);
    let kept = RunFolder::claim(&link).unwrap().start().unwrap().unwrap();
    assert_eq!(kept, run.with_file_name("run-1"));
    assert!(link.is_symlink() && link.join(MARK).is_file());
}

#[test]
fn a_folder_that_cannot_be_renamed_is_refused_before_any_work() {
    let (_folder, run) = place();
    ended(&run);
    let root = run.ancestors().last().unwrap();
    let error = place::check_can_be_renamed(root).unwrap_err().to_string();
    assert!(error.contains("root of the file system"), "{error}");
    let here = std::env::current_dir().unwrap().canonicalize().unwrap();
    for folder in here.ancestors().filter(|f| f.parent().is_some()) {
        let error = place::check_can_be_renamed(folder).unwrap_err().to_string();
        assert!(error.contains("was started in it"), "{error}");
    }
    #[cfg(target_os = "linux")]
    {
        let error = place::check_can_be_renamed(Path::new("/proc")).unwrap_err();
        assert!(error.to_string().contains("mounted"), "{error}");
    }
}

#[test]
fn a_rename_that_fails_midway_is_undone() {
    let (folder, run) = place();
    ended(&run);
    let claimed = RunFolder::claim(&run).unwrap();
    put(&claimed.staging(), "data/corpus.idx", "new");
    // Its folder is not there in the new one.
    place::move_aside(&run, &format!("{STAGING}/data")).unwrap_err();
    assert_eq!(names(folder.path()).unwrap(), ["run"]);
    assert!(run.join("metrics.jsonl").exists());
}
