//! Sums gradients over micro-batches and replicas, in full precision.

use std::collections::HashMap;
use std::sync::Arc;
use std::thread::JoinHandle;

use burn::tensor::{Shape, Tensor};
use crossbeam::channel::{Receiver, Sender, unbounded};

use super::partition::{Bucket, Class, Slot};
use crate::comm::groups::Groups;
use crate::comm::tensor::{from_buffer, to_buffer};
use crate::comm::{Communicator, Reduction};
use crate::error::{Error, Result};
use crate::ops::gradient_sum::for_another_thread;
use crate::parameter::ParameterGradient;

/// The highest ZeRO stage that there is.
pub const MAX_ZERO_STAGE: u8 = 1;

/// How gradients are reduced.
#[derive(Debug, Clone, Copy)]
pub struct ReducerOptions {
    /// ZeRO stage: 0 leaves the whole sum on every replica, 1 leaves each its piece.
    pub zero_stage: u8,
    /// Reduce on a thread of its own while the backward pass goes on. The sums are the same to the bit.
    pub overlap: bool,
}

/// Accumulates gradients (f32, or f64 for f64 parameters) and reduces them bucket by bucket.
#[derive(Debug)]
pub struct GradientReducer {
    slots: Arc<Vec<Slot>>,
    buckets: Arc<Vec<Bucket>>,
    by_name: HashMap<String, usize>,
    final_uses: Vec<usize>,
    launched: Vec<bool>,
    reduced: Vec<Option<Tensor<1>>>,
    channel: Channel,
    worker: Option<Worker>,
    /// A pass has begun, whose gradients are not taken.
    open: bool,
}

/// The communicators that reductions use: their own, because they may run beside the backward pass.
#[derive(Debug, Clone)]
struct Channel {
    tp: Arc<dyn Communicator>,
    dp: Arc<dyn Communicator>,
    embedding: Arc<dyn Communicator>,
    zero_stage: u8,
}

#[derive(Debug)]
struct Worker {
    jobs: Option<Sender<(usize, Class, Tensor<1>)>>,
    results: Receiver<(usize, Result<Tensor<1>>)>,
    thread: Option<JoinHandle<()>>,
}

impl GradientReducer {
    /// Makes the reducer of a stage. Every rank calls it.
    ///
    /// # Errors
    /// A group that cannot be formed, or a ZeRO stage other than 0 and 1.
    pub fn new(
        slots: Arc<Vec<Slot>>,
        buckets: Arc<Vec<Bucket>>,
        groups: &Groups,
        options: ReducerOptions,
    ) -> Result<Self> {
        if options.zero_stage > MAX_ZERO_STAGE {
            return Err(Error::config(
                format!("ZeRO stage {} is not implemented", options.zero_stage),
                "use stage 0 (optimiser state whole) or 1 (split over the replicas)",
            ));
        }
        let all = |group: &Arc<dyn Communicator>| (0..group.size()).collect::<Vec<_>>();
        let channel = Channel {
            tp: groups.tp.subgroup("tp-gradients", &all(&groups.tp))?,
            dp: groups.dp.subgroup("dp-gradients", &all(&groups.dp))?,
            embedding: groups
                .embedding
                .subgroup("embedding-gradients", &all(&groups.embedding))?,
            zero_stage: options.zero_stage,
        };
        let by_name = slots
            .iter()
            .enumerate()
            .map(|(i, slot)| (slot.spec.name.clone(), i))
            .collect();
        Ok(Self {
            by_name,
            final_uses: vec![0; slots.len()],
            launched: vec![false; buckets.len()],
            reduced: vec![None; buckets.len()],
            worker: options
                .overlap
                .then(|| Worker::start(channel.clone()))
                .transpose()?,
            slots,
            buckets,
            channel,
            open: false,
        })
    }

    /// Begins a pass.
    ///
    /// # Errors
    /// The gradients of the pass before have not been taken by [`Self::finish`]: those of both would be added up in part.
    pub fn begin(&mut self) -> Result<()> {
        if self.open {
            return Err(Error::config(
                "a pass begins, and the gradients of the one before have not been taken",
                "call GradientReducer::finish after every pass, or discard to drop them; to add up passes, give one \
                 pass the micro-batches of all",
            ));
        }
        self.open = true;
        Ok(())
    }

    /// Drops what a pass that failed, or whose gradients are not wanted, has left.
    ///
    /// # Errors
    /// A thread for reductions that cannot be started.
    pub fn discard(&mut self) -> Result<()> {
        // What a reduction under way will give is dropped with its thread.
        if self.worker.take().is_some() {
            self.worker = Some(Worker::start(self.channel.clone())?);
        }
        self.slots.iter().for_each(|slot| _ = slot.sum.take());
        self.reduced.fill(None);
        self.rewind();
        Ok(())
    }

    fn rewind(&mut self) {
        self.launched.fill(false);
        self.final_uses.fill(0);
        self.open = false;
    }

    /// Adds one piece's gradients. `last`: of the last micro-batch, so that finished buckets can go.
    ///
    /// # Errors
    /// A gradient of a parameter that is not this stage's, of another length, or one too many.
    pub fn add(&mut self, gradients: Vec<ParameterGradient>, last: bool) -> Result<()> {
        for (spec, gradient) in gradients {
            let Some(&slot) = self.by_name.get(&spec.name) else {
                return Err(Error::Internal(format!(
                    "{} is not a parameter of this stage",
                    spec.name
                )));
            };
            let (slot_of, uses) = (&self.slots[slot], &mut self.final_uses[slot]);
            *uses += usize::from(last);
            let length = gradient.as_ref().map_or(slot_of.count, |g| g.dims()[0]);
            if *uses > slot_of.uses || length != slot_of.count {
                return Err(Error::Internal(format!(
                    "gradient {uses} of {}, of {length} elements; there are to be {} of {}",
                    spec.name, slot_of.uses, slot_of.count
                )));
            }
            if let Some(gradient) = gradient {
                slot_of.sum.add(gradient);
            }
        }
        if last && self.worker.is_some() {
            self.launch(|bucket| !bucket.class.tied)?;
        }
        Ok(())
    }

    /// Reduces what the chunk's backward passes have finished. Tied parameters wait for [`Self::finish`].
    ///
    /// # Communication
    /// Per bucket: over tp an all-reduce of partial gradients; over dp an all-reduce (stage 0) or reduce-scatter (stage 1).
    pub fn finish_chunk(&mut self, chunk: usize) -> Result<()> {
        self.launch(|bucket| bucket.chunk == chunk && !bucket.class.tied)
    }

    /// Reduces the rest and gives every bucket's sum: whole (stage 0) or this replica's piece (stage 1).
    ///
    /// # Communication
    /// As [`Self::finish_chunk`]; for tied parameters an all-reduce between first and last stage before.
    pub fn finish(&mut self) -> Result<Vec<Tensor<1>>> {
        self.launch(|_| true)?;
        // Waiting for a bucket that was never started would not end.
        if let Some(bucket) = self.launched.iter().position(|launched| !launched) {
            return Err(Error::Internal(format!(
                "bucket {bucket} has parameters that no backward pass has finished"
            )));
        }
        if let Some(worker) = &self.worker {
            while self.reduced.iter().any(Option::is_none) {
                let (bucket, sum) = worker
                    .results
                    .recv()
                    .map_err(|_| Error::Internal("the reduction thread has ended".into()))?;
                self.reduced[bucket] = Some(sum?);
            }
        }
        self.rewind();
        let sums = self.reduced.iter_mut().map(Option::take);
        sums.map(|sum| sum.ok_or_else(|| Error::Internal("a bucket was not reduced".into())))
            .collect()
    }

    /// Starts the reduction of the given buckets, those that are finished and have not gone yet.
    fn launch(&mut self, wanted: impl Fn(&Bucket) -> bool) -> Result<()> {
        let buckets = self.buckets.clone();
        for (i, bucket) in buckets.iter().enumerate() {
            let finished =
                |&(slot, _): &(usize, usize)| self.final_uses[slot] == self.slots[slot].uses;
            if self.launched[i] || !wanted(bucket) || !bucket.slots.iter().all(finished) {
                continue;
            }
            self.launched[i] = true;
            let flat = self.flatten(bucket)?;
            match &self.worker {
                Some(worker) => worker.submit(i, bucket.class, flat)?,
                None => self.reduced[i] = Some(self.channel.reduce(flat, bucket.class)?),
            }
        }
        Ok(())
    }

    /// The bucket's gradients as one run; zeros where a parameter took no part, and at the end.
    fn flatten(&self, bucket: &Bucket) -> Result<Tensor<1>> {
        let slots = bucket.slots.iter().map(|&(slot, _)| &self.slots[slot]);
        let sums: Vec<_> = slots.map(|slot| (slot.count, slot.sum.take())).collect();
        let like = sums.iter().find_map(|(_, sum)| sum.as_ref());
        let Some(options) = like.map(|g| (g.device(), g.dtype())) else {
            return Err(Error::Internal("a bucket has no gradient at all".into()));
        };
        let zeros = |n: usize| Tensor::<1>::zeros([n], (&options.0, options.1));
        let used: usize = sums.iter().map(|(count, _)| count).sum();
        let mut runs: Vec<Tensor<1>> = sums
            .into_iter()
            .map(|(count, sum)| sum.unwrap_or_else(|| zeros(count)))
            .collect();
        if used < bucket.len {
            runs.push(zeros(bucket.len - used));
        }
        Ok(match runs.len() {
            1 if self.worker.is_some() => for_another_thread(runs.remove(0)),
            1 => runs.remove(0),
            _ => Tensor::cat(runs, 0),
        })
    }
}

impl Channel {
    fn reduce(&self, flat: Tensor<1>, class: Class) -> Result<Tensor<1>> {
        let partial = class.partial && self.tp.size() > 1;
        let tied = class.tied && self.embedding.size() > 1;
        if !partial && !tied && self.dp.size() == 1 {
            return Ok(flat);
        }
        let device = flat.device();
        let mut data = to_buffer(flat)?;
        if partial {
            data = self.tp.all_reduce(data, Reduction::Sum)?;
        }
        if tied {
            data = self.embedding.all_reduce(data, Reduction::Sum)?;
        }
        if self.dp.size() > 1 {
            data = match self.zero_stage {
                0 => self.dp.all_reduce(data, Reduction::Sum)?,
                _ => self.dp.reduce_scatter(data)?,
            };
        }
        let shape = Shape::from([data.len()]);
        from_buffer(data, shape, &device)
    }
}

impl Worker {
    fn start(channel: Channel) -> Result<Self> {
        let (jobs, todo) = unbounded::<(usize, Class, Tensor<1>)>();
        let (done, results) = unbounded();
        let thread = std::thread::Builder::new()
            .name("gradient-reduction".into())
            .spawn(move || {
                for (bucket, class, flat) in todo {
                    if done.send((bucket, channel.reduce(flat, class))).is_err() {
                        return;
                    }
                }
            })
            .map_err(|e| Error::Internal(format!("cannot start the reduction thread: {e}")))?;
        Ok(Self {
            jobs: Some(jobs),
            results,
            thread: Some(thread),
        })
    }

    fn submit(&self, bucket: usize, class: Class, flat: Tensor<1>) -> Result<()> {
        let sent = self
            .jobs
            .as_ref()
            .is_some_and(|jobs| jobs.send((bucket, class, flat)).is_ok());
        if sent {
            return Ok(());
        }
        Err(Error::Internal("the reduction thread has ended".into()))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Closing the queue ends the thread; a collective under way ends with its peers or its time-out.
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has shown itself as a missing result.
            _ = thread.join();
        }
    }
}
