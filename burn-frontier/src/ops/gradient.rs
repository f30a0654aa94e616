//! Attaches a hand-written gradient to a value: the crate's one backend extension.
// A build without a backend has nothing to attach to.
#![cfg_attr(
    not(any(feature = "flex", feature = "wgpu", feature = "cuda", feature = "rocm")),
    allow(unused_macros, unused_variables)
)]

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[cfg(any(feature = "wgpu", feature = "cuda", feature = "rocm"))]
use burn::backend::Cube;
#[cfg(feature = "flex")]
use burn::backend::Flex;
use burn::backend::{
    Autodiff, Backend, DispatchTensor,
    autodiff::{
        checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
        grads::Gradients,
        ops::{Backward, Ops, OpsKind},
    },
    backend_extension,
    tensor::FloatTensor,
};
use burn::tensor::{DType, Device, Shape, Tensor};

type Function = Box<dyn FnOnce(DispatchTensor) -> Vec<Option<DispatchTensor>> + Send>;

/// The way back of one operation: from the output's gradient to the inputs' gradients. Used once, as Burn's graph is.
#[derive(Clone)]
pub struct Gradient(Arc<Mutex<Option<Function>>>);

impl fmt::Debug for Gradient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gradient")
    }
}

impl Gradient {
    fn call(&self, output: DispatchTensor) -> Vec<Option<DispatchTensor>> {
        let function = lock(&self.0).take();
        // Burn refuses a second backward pass over a graph, so this is not reached; zeros would be a silent fault.
        let function = function.expect("the way back of an operation is taken once");
        function(output)
    }
}

/// A backend whose float primitive converts to and from the tensors of Burn's public interface.
pub trait Primitive: Backend {
    /// The primitive as a tensor without autodiff.
    fn wrap(tensor: FloatTensor<Self>) -> DispatchTensor;
    /// The primitive of a tensor of this backend, without autodiff.
    fn unwrap(tensor: DispatchTensor) -> FloatTensor<Self>;
}

macro_rules! primitive {
    ($backend:ty) => {
        impl Primitive for $backend {
            fn wrap(tensor: FloatTensor<Self>) -> DispatchTensor {
                // The rank is a compile-time label that the primitive does not carry.
                Tensor::<1>::from_primitive::<Self>(tensor).into_dispatch()
            }
            fn unwrap(tensor: DispatchTensor) -> FloatTensor<Self> {
                Tensor::<1>::from_dispatch(tensor)
                    .try_into_primitive::<Self>()
                    .expect("a gradient is moved to its input's device")
            }
        }
        impl GradientOps for $backend {
            fn attach(
                _a: FloatTensor<Self>,
                _b: FloatTensor<Self>,
                _c: FloatTensor<Self>,
                _d: FloatTensor<Self>,
                _e: FloatTensor<Self>,
                output: FloatTensor<Self>,
                _gradient: Gradient,
            ) -> FloatTensor<Self> {
                output
            }
        }
    };
}

#[cfg(feature = "flex")]
primitive!(Flex);
// One type for all GPUs: a tensor's device says which of CubeCL's runtimes it is on.
#[cfg(any(feature = "wgpu", feature = "cuda", feature = "rocm"))]
primitive!(Cube);

/// Backend side of [`with_gradient`].
#[backend_extension(
    Flex: cfg(feature = "flex"),
    Cube: cfg(any(feature = "wgpu", feature = "cuda", feature = "rocm")),
    Autodiff
)]
pub trait GradientOps: Backend {
    /// `output` as a differentiable function of `a` to `e`.
    fn attach(
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        c: FloatTensor<Self>,
        d: FloatTensor<Self>,
        e: FloatTensor<Self>,
        output: FloatTensor<Self>,
        gradient: Gradient,
    ) -> FloatTensor<Self>;
}

/// Inputs of [`GradientOps::attach`].
const INPUTS: usize = 5;

#[derive(Debug)]
struct Attached;

impl<B: Primitive> Backward<B, INPUTS> for Attached {
    type State = Gradient;

    fn backward(
        self,
        ops: Ops<Self::State, INPUTS>,
        gradients: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let output = gradients.consume::<B>(&ops.node);
        let inputs = ops.state.call(B::wrap(output));
        for (parent, gradient) in ops.parents.into_iter().zip(inputs) {
            if let (Some(parent), Some(gradient)) = (parent, gradient) {
                gradients.register::<B>(parent.id, B::unwrap(gradient));
            }
        }
    }
}

impl<B: Primitive, C: CheckpointStrategy> GradientOps for Autodiff<B, C> {
    fn attach(
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        c: FloatTensor<Self>,
        d: FloatTensor<Self>,
        e: FloatTensor<Self>,
        output: FloatTensor<Self>,
        gradient: Gradient,
    ) -> FloatTensor<Self> {
        let output = output.into_primitive();
        let nodes = [a.node(), b.node(), c.node(), d.node(), e.node()];
        match Attached.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => prepared.finish(gradient, output),
            OpsKind::UnTracked(prepared) => prepared.finish(output),
        }
    }
}

/// A number of inputs that [`with_gradient`] takes: one to five.
pub trait InputCount {}
impl InputCount for [(); 1] {}
impl InputCount for [(); 2] {}
impl InputCount for [(); 3] {}
impl InputCount for [(); 4] {}
impl InputCount for [(); 5] {}

/// `output`, computed without autodiff, as a differentiable function of `inputs`.
///
/// `gradient` maps the output's gradient to one gradient per input (`None`: no gradient), each of its input's shape; a gradient
/// on another device or of another type is moved to the input's. It runs at most once, and not at all if no input is tracked.
/// Like PyTorch's `autograd.Function`.
///
/// # Panics
/// In the backward pass, where Burn has no errors, at a gradient of another shape than its input's (a pipeline's segment makes
/// an error of it). Burn itself panics at a second backward pass over the same operation.
pub fn with_gradient<const N: usize, const D: usize>(
    inputs: [DispatchTensor; N],
    output: Tensor<D>,
    gradient: impl FnOnce(Tensor<D>) -> [Option<DispatchTensor>; N] + Send + 'static,
) -> Tensor<D>
where
    [(); N]: InputCount,
{
    if !inputs
        .iter()
        .any(|x| Tensor::<D>::from_dispatch(x.clone()).is_tracked())
    {
        return output;
    }
    let places = inputs.each_ref().map(Place::of);
    let function: Function = Box::new(move |g| {
        let gradients = gradient(Tensor::from_dispatch(g)).into_iter().zip(&places);
        let fitted = gradients.map(|(gradient, place)| gradient.map(|g| place.fit(g)));
        fitted.collect()
    });
    // Without autodiff, so that it takes the strategy of gradient checkpointing that the inputs have.
    let constant = output.into_dispatch();
    let mut inputs = inputs.into_iter();
    // The extension takes five inputs; a constant stands for a missing one.
    let mut next = || inputs.next().unwrap_or_else(|| constant.clone());
    let (a, b, c, d, e) = (next(), next(), next(), next(), next());
    Tensor::from_dispatch(burn::backend::Dispatch::attach(
        a,
        b,
        c,
        d,
        e,
        constant,
        Gradient(Arc::new(Mutex::new(Some(function)))),
    ))
}

/// Where and of what kind an input is, and so its gradient.
struct Place {
    shape: Shape,
    dtype: DType,
    device: Device,
}

impl Place {
    fn of(input: &DispatchTensor) -> Self {
        // As everywhere here, the rank is a label only.
        let input = Tensor::<1>::from_dispatch(input.clone()).without_autodiff();
        Self {
            shape: input.shape(),
            dtype: input.dtype(),
            device: input.device(),
        }
    }

    /// The gradient, where and of the type that its input is.
    fn fit(&self, gradient: DispatchTensor) -> DispatchTensor {
        let mut gradient = Tensor::<1>::from_dispatch(gradient).without_autodiff();
        assert_eq!(
            gradient.shape(),
            self.shape,
            "with_gradient: the shape of a gradient, and that of its input"
        );
        if gradient.device() != self.device {
            gradient = gradient.to_device(&self.device);
        }
        if gradient.dtype() != self.dtype {
            gradient = gradient.cast(self.dtype);
        }
        gradient.into_dispatch()
    }
}

/// What has arrived of the gradients of two outputs.
type Arrived<const D: usize> = Arc<Mutex<[Option<Tensor<D>>; 2]>>;

/// Two `outputs`, computed without autodiff, as differentiable functions of `inputs`.
///
/// As [`with_gradient`], which is given both outputs' gradients at once, after all that use either have gone back: `None` for
/// an output that nothing uses. Burn's operations have one output, so both come from a third one that stands for the pair.
pub fn with_gradients<const N: usize, const D: usize>(
    inputs: [DispatchTensor; N],
    outputs: [Tensor<D>; 2],
    gradient: impl FnOnce([Option<Tensor<D>>; 2]) -> [Option<DispatchTensor>; N] + Send + 'static,
) -> [Tensor<D>; 2]
where
    [(); N]: InputCount,
{
    let arrived = Arrived::<D>::default();
    let taken = arrived.clone();
    let pair = with_gradient(inputs, outputs[0].clone(), move |_| {
        gradient(std::mem::take(&mut *lock(&taken)))
    });
    let shape = outputs[0].shape();
    let mut place = 0..2;
    outputs.map(|output| {
        let shape = shape.clone();
        let (arrived, place) = (arrived.clone(), place.next().unwrap_or_default());
        with_gradient::<1, D>([pair.clone().into_dispatch()], output, move |g| {
            let mut arrived = lock(&arrived);
            // The pair goes back once it has a gradient, of which one is enough: nothing reads it.
            let first = arrived.iter().all(Option::is_none);
            arrived[place] = Some(g.clone());
            let of_pair = |g: Tensor<D>| match g.shape() == shape {
                true => g,
                false => Tensor::zeros(shape, (&g.device(), g.dtype())),
            };
            [first.then(|| of_pair(g).into_dispatch())]
        })
    })
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A scalar whose backward pass gives `output` the gradient `gradient`: the start of a backward pass in the middle of a
/// model, where a pipeline stage or a recomputed layer ends. Both have the same shape; `gradient` is without autodiff.
pub fn seed<const D: usize>(output: Tensor<D>, gradient: Tensor<D>) -> Tensor<1> {
    let scalar = Tensor::<1>::zeros([1], (&gradient.device(), gradient.dtype()));
    with_gradient([output.into_dispatch()], scalar, move |_| {
        [Some(gradient.into_dispatch())]
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    /// A leaf of ones, and twice it with `gradient` as the way back.
    fn doubled(
        gradient: impl FnOnce(Tensor<1>) -> DispatchTensor + Send + 'static,
    ) -> (Tensor<1>, Tensor<1>) {
        let x = Tensor::<1>::ones([3], &Device::flex())
            .autodiff()
            .require_grad();
        let plain = x.clone().without_autodiff().mul_scalar(2.0);
        let y = with_gradient([x.clone().into_dispatch()], plain, |g| [Some(gradient(g))]);
        (x, y)
    }

    #[test]
    fn a_gradient_of_another_kind_than_its_input_is_not_lost() {
        type Change = fn(Tensor<1>) -> Tensor<1>;
        let changes: [Change; 3] = [
            |g| g.autodiff(),
            |g| g.autodiff().require_grad().mul_scalar(1.0),
            |g| g.cast(DType::F64),
        ];
        for change in changes {
            let (x, y) = doubled(move |g| change(g.mul_scalar(2.0)).into_dispatch());
            let gradient = x.grad(&y.sum().backward()).unwrap();
            assert_eq!(gradient.into_data().try_to_vec::<f32>().unwrap(), [2.0; 3]);
        }
    }

    #[test]
    #[cfg(feature = "wgpu")]
    fn a_gradient_from_another_device_is_moved_to_its_inputs() {
        let Ok(gpu) = crate::device::choose(Some("wgpu")) else {
            return eprintln!("skipped: there is no device for wgpu");
        };
        let gpu = gpu.of_rank(0);
        let (x, y) = doubled(move |g| g.mul_scalar(2.0).to_device(&gpu).into_dispatch());
        let gradient = x.grad(&y.sum().backward()).unwrap();
        assert_eq!(gradient.into_data().try_to_vec::<f32>().unwrap(), [2.0; 3]);
    }

    #[test]
    fn a_gradient_of_another_shape_is_refused() {
        let (_, y) = doubled(|g| g.narrow(0, 0, 2).into_dispatch());
        assert!(catch_unwind(AssertUnwindSafe(|| y.sum().backward())).is_err());
    }

    #[test]
    fn a_second_backward_pass_over_an_operation_is_refused() {
        let (x, y) = doubled(|g| g.mul_scalar(2.0).into_dispatch());
        let (once, again) = (y.clone().sum(), (y * x.clone()).sum());
        let gradient = x.grad(&once.backward()).unwrap();
        assert_eq!(gradient.into_data().try_to_vec::<f32>().unwrap(), [2.0; 3]);
        for second in [once, again] {
            assert!(catch_unwind(AssertUnwindSafe(|| second.backward())).is_err());
        }
        let x = Tensor::<1>::ones([3], &Device::flex())
            .autodiff()
            .require_grad();
        let plain = x.clone().without_autodiff();
        let [a, b] = with_gradients([x.into_dispatch()], [plain.clone(), plain], |[a, b]| {
            [a.or(b).map(Tensor::into_dispatch)]
        });
        _ = a.sum().backward();
        assert!(catch_unwind(AssertUnwindSafe(|| b.sum().backward())).is_err());
    }

    #[test]
    fn an_attached_gradient_is_used_and_adds_up() {
        let device = Device::flex();
        let x = Tensor::<2>::from_data([[1.0, 2.0], [3.0, 4.0]], &device)
            .autodiff()
            .require_grad();
        let y = with_gradient(
            [x.clone().into_dispatch()],
            x.clone().without_autodiff().mul_scalar(2.0),
            |g| [Some(g.mul_scalar(10.0).into_dispatch())],
        );
        let mut gradients = (y.clone() + y + x.clone()).sum().backward();
        let gradient = x.grad_remove(&mut gradients).unwrap();
        assert_eq!(gradient.into_data().try_to_vec::<f32>().unwrap(), [21.0; 4]);
    }

    #[test]
    fn the_gradients_of_two_outputs_arrive_together() {
        let device = Device::flex();
        let run = |strategy: fn(Device) -> Device, use_of: [f32; 2]| {
            let x = Tensor::<1>::from_data([3.0, 4.0], &strategy(device.clone())).require_grad();
            let plain = x.clone().without_autodiff();
            let outputs = [plain.clone().mul_scalar(2.0), plain.mul_scalar(5.0)];
            let [twice, five] = with_gradients([x.clone().into_dispatch()], outputs, |[a, b]| {
                let both = [a.map(|a| a.mul_scalar(2.0)), b.map(|b| b.mul_scalar(5.0))];
                let sum = both.into_iter().flatten().reduce(|a, b| a + b);
                [sum.map(Tensor::into_dispatch)]
            });
            // The second output's user goes back before the first output's, which uses it.
            let mut loss = x.clone().sum().mul_scalar(100.0);
            if use_of[0] > 0.0 {
                loss = loss + (twice.clone() * twice).sum();
            }
            if use_of[1] > 0.0 {
                loss = loss + five.exp().log().sum();
            }
            let gradients = loss.backward();
            let gradient = x.grad(&gradients).unwrap();
            gradient.into_data().try_to_vec::<f32>().unwrap()
        };
        let strategies: [fn(Device) -> Device; 2] =
            [Device::autodiff, |d| d.autodiff().gradient_checkpointing()];
        for strategy in strategies {
            for (use_of, expected) in [
                ([1.0, 1.0], [129.0, 137.0]),
                ([1.0, 0.0], [124.0, 132.0]),
                ([0.0, 1.0], [105.0, 105.0]),
                ([0.0, 0.0], [100.0, 100.0]),
            ] {
                let own = run(strategy, use_of);
                for (own, expected) in own.iter().zip(expected) {
                    assert!(
                        (own - expected).abs() < 1e-3,
                        "{use_of:?}: {own} {expected}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_seed_starts_the_backward_pass_in_the_middle() {
        let device = Device::flex();
        let x = Tensor::<1>::from_data([1.0, 2.0], &device)
            .autodiff()
            .require_grad();
        let gradient = Tensor::<1>::from_data([5.0, 7.0], &device);
        let mut gradients = seed(x.clone().mul_scalar(3.0), gradient).backward();
        let gradient = x.grad_remove(&mut gradients).unwrap();
        assert_eq!(
            gradient.into_data().try_to_vec::<f32>().unwrap(),
            [15.0, 21.0]
        );
    }
}
