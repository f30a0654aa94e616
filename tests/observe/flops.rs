//! Operation counts under their names.

use burn_frontier::Recompute;
use burn_frontier::observe::flops::{
    ModelShape, Throughput, hardware_flops_per_token, model_flops_per_token, utilization,
};

/// Peak of one MI250X GCD in half precision, FLOP/s.
const GCD_PEAK: f64 = 191.5e12;

/// The passes that a published figure counts: the factor `f` of [`paper_flops`].
#[derive(Clone, Copy)]
enum Passes {
    /// `f = 3`: forward and backward. The numerator of MFU.
    Model,
    /// `f = 4`: forward, the whole forward again, and backward. The numerator of HFU with full recompute, which is the
    /// figure that arXiv 2312.12705 reports.
    FullRecompute,
}

impl Passes {
    /// The factor `f`, in forward passes; a backward pass is worth two.
    const fn factor(self) -> f64 {
        match self {
            Self::Model => 3.0,
            Self::FullRecompute => 4.0,
        }
    }
}

/// Operations of one step on `batch` sequences by the formula of the papers,
/// `24 f B s L h^2 (1 + s/(6h) + V/(16 L h))`.
///
/// It knows `4 h` wide ungated feed-forward blocks and multi-head attention only; `ModelShape::ffn`, `gated` and
/// `kv_heads` are ignored. With `f = 4` it equals [`hardware_flops_per_token`] of such a model with full recompute. With
/// `f = 3` it counts 4.5 instead of 6 operations per element of the logits matrix and token, because it scales the
/// logits, which are never recomputed, with `f` too: below [`model_flops_per_token`] by at most `V/(4 (12 L h + V))`,
/// which is 0.4 % at 22B parameters and less above.
///
/// Source: arXiv 2104.04473, section 5.1 and appendix (`f = 4`); arXiv 2312.12705 for the utilization it defines.
fn paper_flops(shape: &ModelShape, batch: usize, passes: Passes) -> f64 {
    let [layers, hidden, vocabulary, sequence] =
        [shape.layers, shape.hidden, shape.vocabulary, shape.sequence].map(|n| n as f64);
    let relative = 1.0 + sequence / (6.0 * hidden) + vocabulary / (16.0 * layers * hidden);
    24.0 * passes.factor() * batch as f64 * sequence * layers * hidden.powi(2) * relative
}

/// The three models of arXiv 2312.12705 and what it reports: HFU in percent of the peak, and what follows from it.
fn published() -> [(ModelShape, f64, f64, f64); 3] {
    [
        (
            ModelShape::gpt(48, 6144, 48, 51_200, 2048),
            38.38,
            28.8,
            396.0,
        ),
        (
            ModelShape::gpt(96, 12_288, 96, 51_200, 2048),
            36.14,
            27.1,
            48.3,
        ),
        (
            ModelShape::gpt(128, 25_600, 128, 51_200, 2048),
            31.96,
            24.0,
            7.49,
        ),
    ]
}

fn close(a: f64, b: f64, relative: f64) -> bool {
    (a - b).abs() <= relative * b.abs()
}

#[test]
fn the_published_rows_are_hfu_and_give_these_tokens_per_second() {
    for (shape, hfu, mfu, tokens_per_second) in published() {
        let per_sequence = paper_flops(&shape, 1, Passes::FullRecompute);
        let seconds = per_sequence / (hfu / 100.0 * GCD_PEAK);
        let tokens = shape.sequence as f64 / seconds;
        assert!(close(tokens, tokens_per_second, 0.002), "{tokens} tokens/s");
        let model = paper_flops(&shape, 1, Passes::Model);
        let found = 100.0 * utilization(model, seconds, 1, GCD_PEAK).unwrap();
        assert!(
            (found - mfu).abs() < 0.05,
            "MFU {found} %, published {mfu} %"
        );
    }
}

#[test]
fn the_exact_count_of_a_gpt_is_the_papers_count() {
    for (shape, ..) in published() {
        let (batch, tokens) = (3, 3.0 * 2048.0);
        let exact = tokens * hardware_flops_per_token(&shape, Recompute::Full);
        let paper = paper_flops(&shape, batch, Passes::FullRecompute);
        assert!(close(exact, paper, 1e-12), "{exact} and {paper}");
        let exact = tokens * model_flops_per_token(&shape);
        let paper = paper_flops(&shape, batch, Passes::Model);
        assert!(
            paper < exact && close(exact, paper, 0.004),
            "{exact} and {paper}"
        );
    }
}

#[test]
fn grouped_queries_and_gates_are_counted_matrix_by_matrix() {
    let shape = ModelShape {
        layers: 3,
        hidden: 8,
        heads: 4,
        kv_heads: 2,
        ffn: 10,
        gated: true,
        vocabulary: 32,
        sequence: 16,
    };
    // query and output 8x8, key and value 8x4, gate, up and down 8x10, logits 8x32.
    let weights = 3 * (2 * 64 + 2 * 32 + 3 * 80) + 8 * 32;
    // scores and weighted values: 16 keys of 8 elements each.
    let core = 3 * (2 * 16 * 8);
    let forward = f64::from(2 * (weights + core));
    assert_eq!(model_flops_per_token(&shape), 3.0 * forward);
    let again = |recompute| hardware_flops_per_token(&shape, recompute) - 3.0 * forward;
    assert_eq!(again(Recompute::None), 0.0);
    assert_eq!(again(Recompute::Selective), f64::from(2 * core));
    assert_eq!(again(Recompute::Full), forward - f64::from(2 * 8 * 32));
}

#[test]
fn more_than_the_peak_is_refused() {
    let error = utilization(2.1e12, 1.0, 2, 1e12).unwrap_err().to_string();
    assert!(error.contains("105.0 %"), "{error}");
    assert!(error.contains("the count or the clock is wrong"), "{error}");
    assert_eq!(utilization(2e12, 1.0, 2, 1e12).unwrap(), 1.0);
    for (flops, seconds, ranks, peak) in [
        (1.0, 0.0, 1, 1.0),
        (1.0, f64::NAN, 1, 1.0),
        (1.0, 1.0, 0, 1.0),
        (1.0, 1.0, 1, 0.0),
        (f64::NAN, 1.0, 1, 1.0),
    ] {
        assert!(utilization(flops, seconds, ranks, peak).is_err());
    }
}

#[test]
fn throughput_has_all_names_and_hfu_is_above_mfu_with_recompute() {
    let (shape, ..) = published()[0];
    let speed =
        |peak| Throughput::measure(shape.flops(Recompute::Full), 4096, 2.0, 8, peak).unwrap();
    assert_eq!(speed(None).tokens_per_second, 2048.0);
    assert_eq!(speed(None).tokens_per_second_per_rank, 256.0);
    assert_eq!((speed(None).mfu, speed(None).hfu), (None, None));
    let with_peak = speed(Some(GCD_PEAK));
    assert!(with_peak.hfu.unwrap() > 1.3 * with_peak.mfu.unwrap());
    assert!(Throughput::measure(shape.flops(Recompute::None), 1, 0.0, 1, None).is_err());
}
