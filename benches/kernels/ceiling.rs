//! What the device reaches in this run: the rate of matrix products and the bandwidth of a copy.

use std::cell::RefCell;
use std::fmt;
use std::hint::black_box;
use std::rc::Rc;

use anyhow::Result;
use burn::tensor::{DType, Tensor};

use crate::case::{Place, Timed, Work};
use crate::catalog::Size;
use crate::clock::{Clock, Timing};

/// The best of what was tried.
pub struct Ceiling {
    pub product: Best,
    pub copy: Best,
}

/// A measured ceiling.
pub struct Best {
    pub shape: String,
    pub work: Work,
    pub timing: Timing,
    /// FLOP/s of a product, bytes/s of a copy.
    pub rate: f64,
}

impl Ceiling {
    /// Square products of Burn's own, and one reading and one writing of each element of a large tensor of f32, into new
    /// memory and in place; in place not with fusion, which would make one pass of several copies.
    pub fn measure(place: &Place, clock: &Clock, size: Size) -> Result<Self> {
        let (sides, elements): (&[usize], usize) = match size {
            Size::Tiny => (&[128], 1 << 20),
            Size::Small => (&[512, 768], 1 << 24),
            Size::Large => (&[4096, 6144, 8192], 1 << 28),
        };
        let products = sides.iter().map(|&n| product(place, clock, n));
        // Bytes are bytes: a type in which a processor computes slowly shall not lower the bandwidth.
        let wide = Place {
            dtype: DType::F32,
            ..place.clone()
        };
        let ways = [false, true];
        let ways = ways
            .iter()
            .filter(|&&in_place| !(in_place && cfg!(feature = "fusion")));
        let copies = ways.map(|&in_place| copy(&wide, clock, elements, in_place));
        Ok(Self {
            product: best(products)?,
            copy: best(copies)?,
        })
    }

    /// Share of the ceiling of an operation, which is the lower of the rate and what the bandwidth feeds.
    pub fn share(&self, work: &Work, timing: &Timing) -> f64 {
        let least = (work.flops / self.product.rate).max(work.bytes / self.copy.rate);
        least / timing.seconds
    }
}

impl fmt::Display for Ceiling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:.4} TFLOP/s (Burn's matrix product of {}), {:.2} GB/s (copy of {})",
            self.product.rate / 1e12,
            self.product.shape,
            self.copy.rate / 1e9,
            self.copy.shape
        )
    }
}

fn best(tried: impl Iterator<Item = Result<Best>>) -> Result<Best> {
    let tried = tried.collect::<Result<Vec<_>>>()?;
    let best = tried.into_iter().max_by(|a, b| a.rate.total_cmp(&b.rate));
    best.ok_or_else(|| anyhow::anyhow!("no ceiling was tried"))
}

fn product(place: &Place, clock: &Clock, n: usize) -> Result<Best> {
    let [a, b] = [(); 2].map(|()| place.tensor([n, n]));
    let work = Work {
        flops: 2.0 * (n as f64).powi(3),
        bytes: place.bytes(3 * n * n),
    };
    let timing = clock.time(work.bytes, &mut || {
        let (a, b) = (a.clone(), b.clone());
        Ok(Box::new(move || {
            black_box(a.matmul(b));
            Ok(())
        }))
    })?;
    Ok(Best {
        shape: format!("{n}x{n}x{n}"),
        work,
        timing,
        rate: work.flops / timing.seconds,
    })
}

/// A product with -1, which nothing that Burn offers as a copy would leave out.
fn copy(place: &Place, clock: &Clock, elements: usize, in_place: bool) -> Result<Best> {
    let x = Rc::new(RefCell::new(Some(place.tensor([elements]))));
    // Kept until the next run is made ready: with fusion, what nobody has any more is not computed.
    let kept = Rc::new(RefCell::new(Vec::new()));
    let keep = kept.clone();
    let step = move || {
        let given: Option<Tensor<1>> = if in_place {
            x.take()
        } else {
            x.borrow().clone()
        };
        let y = given.map(|x| x.mul_scalar(-1.0));
        if in_place {
            x.replace(y);
        } else {
            keep.borrow_mut().push(y);
        }
    };
    let work = Work {
        flops: 0.0,
        bytes: place.bytes(2 * elements),
    };
    let timing = clock.time(work.bytes, &mut || {
        kept.borrow_mut().clear();
        let step = step.clone();
        let run: Timed = Box::new(move || {
            step();
            Ok(())
        });
        Ok(run)
    })?;
    let how = if in_place {
        "in place"
    } else {
        "to new memory"
    };
    Ok(Best {
        shape: format!("{elements} f32 {how}"),
        work,
        timing,
        rate: work.bytes / timing.seconds,
    })
}
