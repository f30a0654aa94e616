//! A model that can be computed in the head: `y = w x` on every stage, and the squared error on the last.

use std::time::{Duration, Instant};

use burn::tensor::{DType, Device, Tensor, TensorData};
use burn_frontier::comm::groups::Groups;
use burn_frontier::comm::local::{self, LocalOptions};
use burn_frontier::comm::{Buffer, Communicator, Reduction};
use burn_frontier::models::gpt::batch::TokenBatch;
use burn_frontier::observe::trace::SpanRecorder;
use burn_frontier::optim::OptimizerConfig;
use burn_frontier::parameter::{Init, Parameter, ParameterContext, ParameterSpec};
use burn_frontier::pipeline::activation::Activation;
use burn_frontier::pipeline::run::Pipeline;
use burn_frontier::pipeline::schedule::Kind;
use burn_frontier::pipeline::segment::segment;
use burn_frontier::pipeline::stage::{Forward, Output, Stage, StepContext, Tape};
use burn_frontier::placement::Placement;
use burn_frontier::{Error, Layout, Result};

/// A token at which a pass fails half-way.
const BAD: i64 = 666;

/// One weight of 1, `[1]`.
#[derive(Debug, Clone)]
struct Scale {
    weight: Parameter<1>,
    last: bool,
}

burn_frontier::module!(Scale { weight });

impl Scale {
    fn new(name: &str, last: bool, groups: &Groups) -> Self {
        let spec = ParameterSpec {
            name: name.into(),
            shape: vec![1],
            placement: Placement::Replicated,
            gradient: Placement::Replicated,
            init: Init::Constant(1.0),
            decay: false,
        };
        let context = ParameterContext {
            dtype: DType::F64,
            ..ParameterContext::new(1, groups, Device::flex())
        };
        let weight = Parameter::init(spec, &context);
        Self { weight, last }
    }
}

fn column(values: &[i64], like: &Tensor<1>) -> Tensor<1> {
    let data = TensorData::new(values.to_vec(), [values.len()]);
    Tensor::from_data(data, (&like.device().without_autodiff(), DType::F64))
}

impl Stage for Scale {
    type Batch = TokenBatch;

    fn forward(
        &self,
        input: Vec<Activation>,
        batch: &TokenBatch,
        context: &StepContext,
    ) -> Result<Forward> {
        if batch.tokens.contains(&BAD) {
            return Err(Error::config("a bad token", "use another"));
        }
        let shape = [batch.batch, batch.sequence(), 1];
        let tokens = column(&batch.tokens, &self.weight.value).reshape(shape);
        let trained = &context.trained;
        let (y, back) = segment(self, input, false, trained, move |part, mut x| {
            let x = x
                .pop()
                .map_or(Ok(tokens.clone()), Activation::tensor::<3>)?;
            assert_eq!(x.dims(), shape);
            Ok(vec![(x * part.weight.value.clone().unsqueeze()).into()])
        })?;
        if !self.last {
            let tape = Tape(vec![back]);
            let output = Output::Activations(y);
            return Ok(Forward { output, tape });
        }
        let targets = batch.targets.clone();
        let n = targets.len();
        let none = None::<Self>;
        let (mut losses, loss) = segment(&none, y, false, trained, move |_, mut y| {
            let y = y.pop().expect("the last stage has an input");
            let y = y.tensor::<3>()?.reshape([n]);
            let counts: Vec<i64> = targets.iter().map(|&t| i64::from(t >= 0)).collect();
            let difference = y.clone() - column(&targets, &y);
            let losses = difference.clone() * difference * column(&counts, &y);
            Ok(vec![losses.into()])
        })?;
        let tape = Tape(vec![back, loss]);
        let output = Output::Losses(losses.remove(0).tensor()?);
        Ok(Forward { output, tape })
    }
}

/// Samples of one token, as (x, target).
fn batch(samples: &[(i64, i64)]) -> TokenBatch {
    TokenBatch {
        tokens: samples.iter().map(|s| s.0).collect(),
        targets: samples.iter().map(|s| s.1).collect(),
        batch: samples.len(),
        positions: (0..samples.len() as u64).collect(),
    }
}

/// Two layers on `pp` stages, and what a step of plain gradient descent at a rate of 0.1 makes of the weights: those of rank
/// 0 and of the last rank. Gives the mean loss too.
fn step(
    (pp, dp): (usize, usize),
    kind: Kind,
    zero: u8,
    replicas: &[Vec<TokenBatch>],
) -> Result<(f64, [f64; 2])> {
    let layout = Layout {
        pp,
        dp,
        ..Layout::single()
    }
    .validated()?;
    let ranks = local::run(layout.world(), &Default::default(), |world| {
        let groups = Groups::new(layout, world.clone())?;
        let mut pipeline = pipeline(kind, &groups)?;
        let (mut reducer, _) =
            OptimizerConfig::new(zero, false).init(&mut pipeline.chunks, None, &groups)?;
        let mut spans = SpanRecorder::new(Instant::now(), 0, 0, false);
        let batches = &replicas[groups.at.dp];
        let pass = pipeline.forward_backward(
            batches,
            &StepContext::default(),
            1.0,
            &mut reducer,
            &mut spans,
        )?;
        let gradients = reducer.finish()?;
        let gradient = gradients[0].clone().sum().into_scalar::<f64>();
        let mean = sum(&world, pass.loss_sum)? / pass.counted as f64;
        Ok((mean, 1.0 - 0.1 * gradient))
    })?;
    Ok((ranks[0].0, [ranks[0].1, ranks[layout.world() - 1].1]))
}

fn sum(world: &std::sync::Arc<dyn Communicator>, x: f64) -> Result<f64> {
    let sum = world.all_reduce(Buffer::F64(vec![x]), Reduction::Sum)?;
    Ok(sum.into_f64()?[0])
}

fn pipeline(kind: Kind, groups: &Groups) -> Result<Pipeline<Scale>> {
    let (stage, stages) = (groups.at.pp, groups.layout.pp);
    let part = Scale::new(&format!("layer{stage}"), stage + 1 == stages, groups);
    Pipeline::new(vec![part], kind, groups.clone(), Device::flex())
}

const KINDS: [Kind; 2] = [Kind::GPipe, Kind::OneForwardOneBackward];

#[test]
fn two_micro_batches_on_two_stages_move_both_weights_to_0_8() {
    // The gradient of (w2 w1 x)^2 is 2 in either weight, and so is the mean of two of it.
    let (one, two) = (batch(&[(1, 0)]), batch(&[(1, 0), (1, 0)]));
    for kind in KINDS {
        for (dp, zero, replicas) in [
            (1, 0, vec![vec![one.clone(), one.clone()]]),
            (2, 0, vec![vec![one.clone()], vec![one.clone()]]),
            (
                2,
                0,
                vec![vec![one.clone(), two.clone()], vec![one.clone(); 4]],
            ),
        ] {
            let (loss, weights) = step((2, dp), kind, zero, &replicas).unwrap();
            assert_eq!(loss, 1.0, "{kind} dp {dp}");
            for weight in weights {
                assert!((weight - 0.8).abs() < 1e-15, "{kind} dp {dp}: {weights:?}");
            }
        }
    }
}

#[test]
fn the_loss_is_divided_once_by_the_targets_that_count_of_all_replicas() {
    // Squared errors 1 and 4, of three that are not counted: mean 2.5; gradients 2 * 1 * 1 and 2 * 2 * 2: mean 5. Means of
    // the micro-batches' means, or of the replicas', would give others.
    let replicas = vec![
        vec![batch(&[(1, 0), (3, -1)]), batch(&[(5, -1)])],
        vec![batch(&[(2, 0), (9, -7)])],
    ];
    for kind in KINDS {
        let (loss, weights) = step((2, 2), kind, 0, &replicas).unwrap();
        assert_eq!(loss, 2.5);
        for weight in weights {
            assert!((weight - 0.5).abs() < 1e-15, "{weights:?}");
        }
    }
    let none = [vec![batch(&[(1, -1)])], vec![batch(&[(2, -1)])]];
    let error = step((2, 2), Kind::GPipe, 0, &none).unwrap_err().to_string();
    assert!(
        error.contains("nothing of the global batch counts"),
        "{error}"
    );
}

#[test]
fn an_evaluation_gives_the_sum_and_the_count_and_zeros_where_nothing_counts() {
    let layout = Layout {
        pp: 2,
        dp: 2,
        ..Layout::single()
    };
    let passes = local::run(layout.world(), &Default::default(), |world| {
        let groups = Groups::new(layout, world)?;
        let pipeline = pipeline(Kind::GPipe, &groups)?;
        let none = batch(&[(1, -1)]);
        let some = batch(&[(3, 0), (1, 0), (2, -1)]);
        let evaluate = |batches: &[TokenBatch]| pipeline.evaluate(batches, &StepContext::default());
        let replica = [vec![some], vec![none.clone(), none.clone()]];
        Ok((
            evaluate(&replica[groups.at.dp])?,
            evaluate(&[none])?,
            groups.at,
        ))
    });
    for (some, none, at) in passes.unwrap() {
        assert_eq!((some.counted, none.counted, none.loss_sum), (2, 0, 0.0));
        let here = at.pp == 1 && at.dp == 0;
        assert_eq!(some.loss_sum, if here { 10.0 } else { 0.0 });
    }
}

#[test]
fn a_pass_that_failed_or_was_not_finished_leaves_nothing_to_the_next() {
    let groups = Groups::new(Layout::single(), local::single()).unwrap();
    for overlap in [false, true] {
        let mut pipeline = pipeline(Kind::GPipe, &groups).unwrap();
        let zero = OptimizerConfig::new(0, overlap);
        let (mut reducer, _) = zero.init(&mut pipeline.chunks, None, &groups).unwrap();
        let mut spans = SpanRecorder::new(Instant::now(), 0, 0, false);
        let mut pass = |batches: &[TokenBatch], reducer: &mut _| {
            let context = StepContext::default();
            pipeline.forward_backward(batches, &context, 1.0, reducer, &mut spans)
        };
        let good = batch(&[(1, 0)]);
        let expect = |reducer: &mut burn_frontier::zero::reducer::GradientReducer,
                      expected: f64| {
            let gradients = reducer.finish().unwrap();
            assert_eq!(gradients[0].clone().sum().into_scalar::<f64>(), expected);
        };
        // One micro-batch has gone back when the second fails.
        let error = pass(&[good.clone(), batch(&[(BAD, 0)])], &mut reducer);
        assert!(error.unwrap_err().to_string().contains("a bad token"));
        pass(std::slice::from_ref(&good), &mut reducer).unwrap();
        expect(&mut reducer, 2.0);
        // Two passes without a finish between them.
        pass(std::slice::from_ref(&good), &mut reducer).unwrap();
        let error = pass(std::slice::from_ref(&good), &mut reducer).unwrap_err();
        assert!(error.to_string().contains("finish"), "{error}");
        expect(&mut reducer, 2.0);
        pass(&[batch(&[(3, 0)])], &mut reducer).unwrap();
        reducer.discard().unwrap();
        pass(&[good], &mut reducer).unwrap();
        expect(&mut reducer, 2.0);
    }
}

#[test]
fn what_fails_in_one_rank_half_way_reaches_every_rank() {
    let layout = Layout {
        pp: 2,
        dp: 2,
        ..Layout::single()
    };
    let options = LocalOptions {
        timeout: Duration::from_secs(20),
        ..LocalOptions::default()
    };
    for train in [false, true] {
        let failed = local::run(layout.world(), &options, |world| {
            let groups = Groups::new(layout, world)?;
            let mut pipeline = pipeline(Kind::OneForwardOneBackward, &groups)?;
            let (mut reducer, _) =
                OptimizerConfig::new(0, true).init(&mut pipeline.chunks, None, &groups)?;
            let mut spans = SpanRecorder::new(Instant::now(), 0, 0, false);
            let last = if groups.at.dp == 0 { BAD } else { 1 };
            let batches = [batch(&[(1, 0)]), batch(&[(last, 0)])];
            let context = StepContext::default();
            let pass = if train {
                let pass =
                    pipeline.forward_backward(&batches, &context, 1.0, &mut reducer, &mut spans);
                pass.and_then(|_| reducer.finish().map(drop))
            } else {
                let pass = pipeline.evaluate(&batches, &context);
                pass.and_then(|_| groups.world.barrier())
            };
            let error = pass.unwrap_err().to_string();
            assert!(error.contains("a bad token"), "{error}");
            Ok(())
        });
        let error = failed.unwrap_err().to_string();
        assert!(error.contains("a bad token"), "{error}");
    }
}

#[test]
fn a_model_whose_last_stage_alone_does_not_give_losses_is_refused() {
    let layout = Layout {
        pp: 2,
        ..Layout::single()
    };
    let cases = [
        (false, "the last stage of the model gives activations"),
        (true, "part 0 of a model in 2 parts gives losses"),
    ];
    for ((losses, part), train) in cases.into_iter().flat_map(|c| [(c, false), (c, true)]) {
        let failed = local::run(2, &LocalOptions::default(), |world| {
            let groups = Groups::new(layout, world)?;
            let scale = Scale::new(&format!("layer{}", groups.at.pp), losses, &groups);
            let kind = Kind::GPipe;
            let mut pipeline = Pipeline::new(vec![scale], kind, groups.clone(), Device::flex())?;
            let (mut reducer, _) =
                OptimizerConfig::new(0, false).init(&mut pipeline.chunks, None, &groups)?;
            let mut spans = SpanRecorder::new(Instant::now(), 0, 0, false);
            let (batches, context) = ([batch(&[(1, 0)])], StepContext::default());
            let pass = match train {
                true => {
                    pipeline.forward_backward(&batches, &context, 1.0, &mut reducer, &mut spans)
                }
                false => pipeline.evaluate(&batches, &context),
            };
            pass.map(drop)
        });
        let error = failed.unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}
