//! Micro-batches and prompts that do not fit a model.

use std::time::Instant;

use burn::tensor::Device;
use burn_frontier::comm::{groups::Groups, local};
use burn_frontier::models::gpt::batch::TokenBatch;
use burn_frontier::models::gpt::generate::{Sampling, generate};
use burn_frontier::models::gpt::model::Pass;
use burn_frontier::models::gpt::sharding::GptPart;
use burn_frontier::models::gpt::{GptConfig, Positions};
use burn_frontier::observe::trace::SpanRecorder;
use burn_frontier::ops::exchange::{Exchange, apply};
use burn_frontier::optim::OptimizerConfig;
use burn_frontier::parameter::ParameterContext;
use burn_frontier::pipeline::run::Pipeline;
use burn_frontier::pipeline::schedule::Kind;
use burn_frontier::pipeline::stage::StepContext;
use burn_frontier::{Layout, Result};

use crate::{says, x};

/// What every rank gives, none of which fails the others.
fn on_every_rank<T: Send>(
    gpt: &GptConfig,
    (tp, pp, dp): (usize, usize, usize),
    sequence_parallel: bool,
    body: impl Fn(&mut Pipeline<GptPart>, &Groups) -> Result<T> + Sync,
) -> Vec<Result<T>> {
    let layout = Layout { tp, pp, dp };
    local::run(layout.world(), &Default::default(), |world| {
        let groups = Groups::new(layout, world)?;
        let context = ParameterContext {
            sequence_parallel,
            ..ParameterContext::new(1, &groups, Device::flex())
        };
        let mut pipeline = gpt.init(Kind::default(), &groups, &context)?;
        Ok(body(&mut pipeline, &groups))
    })
    .unwrap()
}

#[test]
fn a_batch_that_does_not_fit_is_refused_by_every_rank_before_anything_is_sent() {
    let good = TokenBatch::new(&[(0..9).collect(), (1..10).collect()], vec![0, 1]).unwrap();
    type Change = fn(&mut TokenBatch);
    let faults: [(Change, bool, &str); 9] = [
        (|b| b.batch = 3, false, "16 tokens for 3 samples"),
        (|b| b.batch = 0, false, "16 tokens for 0 samples"),
        (
            |b| {
                b.batch = 1;
                b.positions.pop();
            },
            false,
            "16 tokens, and the model has 8 positions",
        ),
        (|b| _ = b.targets.pop(), false, "15 targets for 16 tokens"),
        (
            |b| _ = b.positions.pop(),
            false,
            "1 positions for 2 samples",
        ),
        (|b| b.tokens[15] = 64, false, "token 64"),
        (|b| b.tokens[15] = -1, false, "token -1"),
        (|b| b.targets[15] = 64, false, "token 64"),
        (
            |b| {
                b.tokens.truncate(14);
                b.targets.truncate(14);
            },
            true,
            "7 tokens cannot be split over tp 2",
        ),
    ];
    for positions in [Positions::Learned, Positions::Rotary] {
        let mut gpt = GptConfig::new(2, 16, 2, 64, 8).with_dropout(0.1);
        gpt.positions = positions;
        for (tp, pp, dp) in [(1, 1, 1), (2, 1, 1), (2, 2, 1), (2, 2, 2)] {
            for (change, split, expected) in faults {
                if split && tp == 1 {
                    continue;
                }
                let ranks = on_every_rank(&gpt, (tp, pp, dp), true, |pipeline, groups| {
                    let mut bad = good.clone();
                    // The last replica's only: the others are told.
                    if groups.at.dp + 1 == dp {
                        change(&mut bad);
                    }
                    let context = StepContext {
                        step: Some(1),
                        ..StepContext::default()
                    };
                    let (mut reducer, _) =
                        OptimizerConfig::new(0, false).init(&mut pipeline.chunks, None, groups)?;
                    let mut spans = SpanRecorder::new(Instant::now(), 0, 0, false);
                    let sent = || groups.world.traffic().iter().map(|t| t.bytes).sum::<u64>();
                    let before = sent();
                    let bad = [good.clone(), bad];
                    let errors = [
                        pipeline.evaluate(&bad, &context).map(drop),
                        pipeline
                            .forward_backward(&bad, &context, 1.0, &mut reducer, &mut spans)
                            .map(drop),
                    ];
                    let bytes = sent() - before;
                    // Nothing is left behind: the next batch is computed.
                    let good = std::slice::from_ref(&good);
                    let pass =
                        pipeline.forward_backward(good, &context, 1.0, &mut reducer, &mut spans)?;
                    assert_eq!(pass.counted, 16 * dp as u64);
                    reducer.finish()?;
                    Ok((errors, bytes))
                });
                for rank in ranks {
                    let (errors, bytes) = rank.unwrap();
                    for error in errors {
                        says(error, &[expected]);
                    }
                    assert!(bytes < 1000, "{bytes} bytes: {expected}");
                }
            }
        }
    }
}

#[test]
fn lengths_that_tensor_parallel_ranks_cannot_share_are_errors_of_every_layer() {
    local::run(2, &Default::default(), |world| {
        let groups = Groups::new(
            Layout {
                tp: 2,
                ..Layout::single()
            }
            .validated()?,
            world,
        )?;
        let context = ParameterContext {
            sequence_parallel: true,
            ..ParameterContext::new(1, &groups, Device::flex())
        };
        let part = GptConfig::new(1, 16, 2, 64, 8).init_part(0..1, &context);
        let embedding = part.embedding.as_ref().unwrap();
        let pass = Pass {
            seed: 1,
            step: None,
            samples: vec![0],
            recompute_attention: false,
        };
        says(
            embedding.forward(&[1, 2, 3], 1, &pass),
            &["3 tokens", "tp 2"],
        );
        Ok(())
    })
    .unwrap();
    for exchange in [Exchange::Split(1), Exchange::ReduceScatter(1)] {
        let error = local::run(2, &Default::default(), |group| {
            let y = apply(x([1, 3, 4]), &group, exchange);
            assert_eq!(y.dims(), [1, 2, 4]);
            group.failure().map_or(Ok(()), Err)
        });
        says(error, &["[1, 3, 4] cannot be split over 2 ranks"]);
    }
}

#[test]
fn text_is_generated_from_what_the_model_has_only() {
    let ids: Vec<u32> = (0..64).collect();
    let sampling = Sampling {
        temperature: 0.0,
        top_k: 1,
        seed: 1,
        ids: &ids,
    };
    let gpt = GptConfig::new(2, 16, 2, 64, 8);
    for (tp, pp, sequence_parallel) in [(1, 1, false), (2, 2, true)] {
        for (prompt, sequence, expected) in [
            (&[][..], 8, "0 tokens"),
            (&[1], 0, "the last 0"),
            (&[64], 8, "token 64"),
            (&[1], 10, "8 positions"),
        ] {
            let ranks = on_every_rank(&gpt, (tp, pp, 1), sequence_parallel, |pipeline, groups| {
                generate(&pipeline.chunks, groups, prompt, 2, sequence, &sampling)
            });
            ranks.into_iter().for_each(|rank| says(rank, &[expected]));
        }
        let whole = |sequence| {
            let ranks = on_every_rank(&gpt, (tp, pp, 1), sequence_parallel, |pipeline, groups| {
                generate(&pipeline.chunks, groups, &[1, 2], 3, sequence, &sampling)
            });
            ranks.into_iter().map(Result::unwrap).collect::<Vec<_>>()
        };
        // What stands behind the last token does not matter.
        assert_eq!(whole(8), whole(6));
    }
}

#[test]
fn a_micro_batch_of_no_samples_or_of_uneven_ones_is_refused() {
    says(TokenBatch::new(&[], vec![]), &["0 samples"]);
    says(
        TokenBatch::new(&[vec![]], vec![0]),
        &["1 samples of 0 tokens"],
    );
    says(TokenBatch::new(&[vec![7]], vec![0]), &["of 1 tokens"]);
    // As many tokens in all as two samples of five.
    says(
        TokenBatch::new(&[vec![1; 4], vec![1; 6]], vec![0, 1]),
        &["sample 0 has 4 tokens", "sample 1 has 6"],
    );
    says(
        TokenBatch::new(&[vec![1; 4]], vec![]),
        &["0 positions for 1 samples"],
    );
    let batch = TokenBatch::new(&[vec![5, 6]], vec![3]).unwrap();
    assert_eq!((batch.tokens, batch.targets), (vec![5], vec![6]));
}
