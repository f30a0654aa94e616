//! Spans, traces and the bubble.

use std::fs;
use std::time::{Duration, Instant};

use burn_frontier::Layout;
use burn_frontier::observe::trace::{
    Category, Span, SpanRecorder, bubble_fraction, write_chrome_trace,
};

use crate::gpipe;

#[test]
fn the_bubble_of_gpipe_is_the_papers() {
    for (stages, m) in [(1, 4), (2, 2), (4, 8), (8, 64)] {
        let layout = Layout {
            pp: stages,
            ..Layout::single()
        };
        let bubble = bubble_fraction(&gpipe(&layout, stages, m)).unwrap();
        let expected = (stages - 1) as f64 / (m + stages - 1) as f64;
        assert!(
            (bubble - expected).abs() < 1e-9,
            "{bubble}, expected {expected}"
        );
    }
    assert_eq!(bubble_fraction(&[]), None);
}

#[test]
fn a_trace_holds_every_span_once_in_order_of_time() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trace.json");
    let layout = Layout {
        tp: 2,
        pp: 2,
        dp: 2,
    };
    let mut spans = gpipe(&layout, 2, 3);
    // The same work on the other pipelines' ranks: replica 1, tensor rank 1.
    let other = spans.iter().map(|s| Span {
        rank: s.rank + 3,
        ..*s
    });
    spans.extend(other.collect::<Vec<_>>());
    write_chrome_trace(&path, &layout, &spans).unwrap();

    let trace: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let complete: Vec<_> = events.iter().filter(|e| e["ph"] == "X").collect();
    assert_eq!(complete.len(), spans.len());
    let starts: Vec<f64> = complete.iter().map(|e| e["ts"].as_f64().unwrap()).collect();
    assert!(starts.is_sorted());
    for span in &spans {
        let name = match span.category {
            Category::Forward => format!("F{}", span.micro_batch.unwrap()),
            _ => format!("B{}", span.micro_batch.unwrap()),
        };
        let at = layout.coordinate(span.rank);
        let same = |e: &&&serde_json::Value| {
            e["name"] == name.as_str()
                && e["pid"] == at.tp + 2 * at.dp
                && e["tid"] == span.stage
                && e["ts"] == span.start_us
                && e["dur"] == span.duration_us()
                && e["args"]["rank"] == span.rank
        };
        assert_eq!(complete.iter().filter(same).count(), 1, "{span:?}");
    }
    // Four ranks took part; each has a named process and thread.
    assert_eq!(events.len() - complete.len(), 2 * 4);

    let error = write_chrome_trace(&path, &Layout::single(), &spans).unwrap_err();
    assert!(error.to_string().contains("layout"), "{error}");
}

#[test]
fn a_recorder_measures_from_its_origin_and_one_that_is_off_keeps_nothing() {
    let origin = Instant::now();
    let mut on = SpanRecorder::new(origin, 3, 1, true);
    let mut off = SpanRecorder::new(origin, 3, 1, false);
    let start = origin + Duration::from_micros(10);
    std::thread::sleep(Duration::from_millis(1));
    on.record(Category::Receive, Some(2), 0, start);
    off.record(Category::Receive, Some(2), 0, start);
    let spans = on.take();
    assert!(on.take().is_empty() && off.take().is_empty());
    assert_eq!(spans.len(), 1);
    assert!((spans[0].start_us - 10.0).abs() < 1e-3);
    assert!(spans[0].duration_us() > 900.0);
    assert_eq!((spans[0].rank, spans[0].stage), (3, 1));
    assert_eq!(spans[0].name(), "receive 2");
}
