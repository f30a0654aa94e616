//! What the plots show.

use std::fs;
use std::path::Path;

use burn_frontier::Layout;
use burn_frontier::observe::metrics::StepRecord;
use burn_frontier::observe::plot::{
    Roofline, RooflinePoint, write_loss_plot, write_pipeline_plot, write_roofline_plot,
};
use burn_frontier::observe::trace::Span;

use crate::{gpipe, record};

fn svg(name: &str, write: impl FnOnce(&Path)) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    write(&path);
    let svg = fs::read_to_string(&path).unwrap();
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
    svg
}

/// The text elements of an SVG.
fn labels(svg: &str) -> Vec<&str> {
    (svg.split("<text").skip(1))
        .map(|t| {
            t.split_once('>')
                .unwrap()
                .1
                .split("</text>")
                .next()
                .unwrap()
                .trim()
        })
        .collect()
}

#[test]
fn the_loss_plot_names_its_axes_and_curves_and_survives_overflows() {
    let mut records: Vec<_> = (1..=200).map(record).collect();
    records[50].loss = f64::NAN;
    let svg = svg("loss.svg", |path| {
        write_loss_plot(path, "tiny gpt", &records, Some(7.25)).unwrap();
    });
    let labels = labels(&svg);
    for expected in [
        "tiny gpt",
        "step",
        "loss (nats per token)",
        "training loss",
        "moving average of 3 steps",
        "validation loss",
        "unigram baseline 7.250",
    ] {
        assert!(
            labels.contains(&expected),
            "{expected} is not in {labels:?}"
        );
    }
    // 50 validation points and the legend's.
    assert_eq!(svg.matches("<circle").count(), 51);
    assert!(!svg.contains("NaN"));
}

#[test]
fn the_loss_of_a_model_without_tokens_has_no_unit() {
    let pictures: Vec<_> = (1..=3)
        .map(|step| StepRecord {
            tokens: None,
            ..record(step)
        })
        .collect();
    let svg = svg("loss.svg", |path| {
        write_loss_plot(path, "pictures", &pictures, None).unwrap();
    });
    let labels = labels(&svg);
    assert!(labels.contains(&"loss"), "{labels:?}");
    assert!(!svg.contains("token"));
}

#[test]
fn a_loss_plot_without_a_finite_loss_is_refused() {
    let overflowed = StepRecord {
        loss: f64::NAN,
        ..record(1)
    };
    let error = write_loss_plot("unwritten.svg", "", &[overflowed], None).unwrap_err();
    assert!(error.to_string().contains("finite loss"), "{error}");
}

#[test]
fn the_pipeline_plot_draws_every_span_and_says_the_bubble() {
    let layout = Layout {
        pp: 4,
        ..Layout::single()
    };
    let spans = gpipe(&layout, 4, 8);
    let draw = |spans: &[Span]| {
        svg("pipeline.svg", |path| {
            write_pipeline_plot(path, "GPipe", spans).unwrap();
        })
    };
    let whole = draw(&spans);
    let labels = labels(&whole);
    for expected in [
        "GPipe: 4 stages, 8 micro-batches, bubble 27.3 %",
        "stage 0",
        "stage 3",
        "forward",
        "backward",
        "idle",
        "time (ms)",
    ] {
        assert!(
            labels.contains(&expected),
            "{expected} is not in {labels:?}"
        );
    }
    // Every micro-batch is named in its forward and its backward box of every stage; 0 is also a tick.
    for micro_batch in ["1", "3", "7"] {
        assert_eq!(labels.iter().filter(|&&l| l == micro_batch).count(), 2 * 4);
    }
    // Each span is one more box, however short.
    let boxes = |svg: &str| svg.matches("<rect").count();
    let mut more = spans.clone();
    let instants = (0..5).map(|i| Span {
        end_us: 5e3 + f64::from(i),
        start_us: 5e3,
        ..spans[0]
    });
    more.extend(instants);
    assert_eq!(boxes(&draw(&more)), boxes(&whole) + 5);
    assert!(write_pipeline_plot("unwritten.svg", "", &[]).is_err());
}

const ROOFLINE: Roofline = Roofline {
    flops_per_second: 1e12,
    bytes_per_second: 1e11,
};

/// A kernel that reaches half of its ceiling, at some FLOP per byte.
fn half_of_ceiling(label: &str, intensity: f64) -> RooflinePoint {
    let bytes = 1e9;
    let least =
        (intensity * bytes / ROOFLINE.flops_per_second).max(bytes / ROOFLINE.bytes_per_second);
    RooflinePoint {
        label: label.into(),
        flops: intensity * bytes,
        bytes,
        seconds: 2.0 * least,
    }
}

#[test]
fn the_roofline_plot_gives_each_kernel_its_share_of_the_lower_ceiling() {
    let points = [
        half_of_ceiling("layer_norm 8x8", 1.0),
        half_of_ceiling("layer_norm 9x9", 1.0),
        half_of_ceiling("linear 64x64", 100.0),
    ];
    let svg = svg("roofline.svg", |path| {
        write_roofline_plot(path, "a device", &ROOFLINE, &points).unwrap();
    });
    let labels = labels(&svg);
    for expected in [
        "a device",
        "FLOP per byte",
        "GFLOP/s",
        "matrix products 1000 GFLOP/s",
        "copy 100 GB/s",
        "linear 64x64",
    ] {
        assert!(
            labels.contains(&expected),
            "{expected} is not in {labels:?}"
        );
    }
    assert_eq!(labels.iter().filter(|&&label| label == "50.0").count(), 3);
    // A number beside its point, and one in the list.
    assert_eq!(labels.iter().filter(|&&label| label == "2").count(), 2);
    assert_eq!(svg.matches("<circle").count(), 3);
}

#[test]
fn a_roofline_plot_of_nothing_or_of_no_time_is_refused() {
    let still = RooflinePoint {
        seconds: 0.0,
        ..half_of_ceiling("linear", 1.0)
    };
    for points in [&[][..], &[still]] {
        let error = write_roofline_plot("unwritten.svg", "", &ROOFLINE, points).unwrap_err();
        assert!(error.to_string().contains("above zero"), "{error}");
    }
    assert!(!Path::new("unwritten.svg").exists());
}
