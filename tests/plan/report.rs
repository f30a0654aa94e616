//! What a plan writes: a page that fits a screen, one self-contained file, and numbers that can be read back.

use std::process::Command;

use super::job;
use burn_frontier::models::gpt::GptConfig;
use burn_frontier::plan::{Job, Machine, Report};

fn report() -> Report<GptConfig> {
    let machine = Machine::load("frontier").unwrap();
    Report::new(&job((96, 12288, 96), (4, 16, 4), (2560, 1)), &machine).unwrap()
}

#[test]
fn the_page_is_read_in_a_minute() {
    let page = report().page();
    assert!(page.lines().count() < 60, "{}", page.lines().count());
    for part in [
        "fits: stage",
        "give or take 8 %",
        "MFU",
        "HFU",
        "tokens/s a rank",
        "matrix products",
        "weak scaling",
    ] {
        assert!(page.contains(part), "no `{part}` in\n{page}");
    }
}

#[test]
fn what_does_not_fit_is_said_with_the_nearest_layout_that_does() {
    let machine = Machine::load("frontier").unwrap();
    let large = job((96, 12288, 96), (4, 4, 4), (64, 1));
    let report = Report::new(&large, &machine).unwrap();
    let page = report.page();
    assert!(
        page.contains("DOES NOT FIT") && page.contains("nearest that fits: tp"),
        "{page}"
    );
    let page = report
        .with_words(|job| format!("-dp {}", job.layout.dp))
        .page();
    assert!(
        page.contains("nearest that fits: -dp") && page.contains("layout    -dp 4\n"),
        "{page}"
    );
}

#[test]
fn the_files_are_self_contained_and_can_be_read_back() {
    let report = report();
    let folder = tempfile::tempdir().unwrap();
    report.write(folder.path()).unwrap();
    let json = std::fs::read_to_string(folder.path().join("plan.json")).unwrap();
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    let job: Job<GptConfig> = serde_json::from_value(value["job"].clone()).unwrap();
    assert_eq!(job, report.job);
    assert_eq!(value["stages"].as_array().unwrap().len(), 16);
    let html = std::fs::read_to_string(folder.path().join("plan.html")).unwrap();
    assert_eq!(html.matches("<svg").count(), 5);
    for foreign in ["http", "src=", "href=", "<script"] {
        assert!(!html.contains(foreign), "{foreign}");
    }
}

/// Needs Debian's chromium.
#[test]
#[ignore = "slow: cargo xtask slow"]
fn a_browser_draws_the_page() {
    let folder = tempfile::tempdir().unwrap();
    report().write(folder.path()).unwrap();
    let page = format!("file://{}", folder.path().join("plan.html").display());
    let picture = folder.path().join("plan.png");
    let run = |arguments: &[String]| {
        let output = Command::new("chromium")
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--window-size=1050,2600",
            ])
            .args(arguments)
            .arg(&page)
            .output()
            .expect("this test needs the program chromium");
        assert!(output.status.success());
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    // What the browser has made of the file: five drawings, each with shapes.
    let seen = run(&["--dump-dom".into()]);
    let drawings: Vec<_> = seen.split("<svg").skip(1).collect();
    assert_eq!(drawings.len(), 5);
    for drawing in drawings {
        let shapes = drawing.matches("<rect").count() + drawing.matches("<circle").count();
        assert!(shapes >= 10, "{shapes}");
    }
    run(&[format!("--screenshot={}", picture.display())]);
    assert!(std::fs::metadata(picture).unwrap().len() > 50_000);
}
