//! Sums gradients over micro-batches and replicas, in full precision.

use std::collections::HashMap;
use std::sync::Arc;
use std::thread::JoinHandle;

use burn::tensor::{DType, Device, Shape, Tensor};
use crossbeam::channel::{Receiver, Sender, unbounded};

use super::partition::{Bucket, Class, Slot, join};
use crate::comm::groups::Groups;
use crate::comm::tensor::{from_buffer, to_buffer};
use crate::comm::{Communicator, Reduction};
use crate::error::{Error, Result};
use crate::ops::gradient_sum::for_another_thread;
use crate::parameter::{ParameterGradient, Selection};

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

impl ReducerOptions {
    pub(crate) fn check(self) -> Result<()> {
        if self.zero_stage <= MAX_ZERO_STAGE {
            return Ok(());
        }
        Err(Error::config(
            format!("ZeRO stage {} is not implemented", self.zero_stage),
            "use stage 0 (optimiser state whole) or 1 (split over the replicas)",
        ))
    }
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
    /// The parameters that are trained here; gradients of others are passed over.
    trained: Selection,
    /// Where a bucket's gradients are, and their type.
    kinds: Vec<(Device, DType)>,
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
    /// Makes the reducer of a stage's parameters that are `trained`; `kinds`: where each bucket's gradients are, and their
    /// type. Every rank calls it.
    ///
    /// # Errors
    /// A group that cannot be formed, or a ZeRO stage other than 0 and 1.
    pub(crate) fn new(
        slots: Arc<Vec<Slot>>,
        buckets: Arc<Vec<Bucket>>,
        kinds: Vec<(Device, DType)>,
        trained: Selection,
        groups: &Groups,
        options: ReducerOptions,
    ) -> Result<Self> {
        options.check()?;
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
            trained,
            kinds,
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
        // What a backward pass of something else has added to the sums, such as another network's through this one.
        self.slots.iter().for_each(|slot| _ = slot.sum.take());
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

    /// Adds one piece's gradients; those of parameters that are not trained here are passed over. `last`: of the last micro-batch, so that finished buckets can go.
    ///
    /// # Errors
    /// A gradient of a parameter that is trained but not this stage's, of another length, or one too many.
    pub fn add(&mut self, gradients: Vec<ParameterGradient>, last: bool) -> Result<()> {
        for (spec, gradient) in gradients {
            if !self.trained.contains(&spec.name) {
                continue;
            }
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
            let flat = self.flatten(i);
            match &self.worker {
                Some(worker) => worker.submit(i, bucket.class, flat)?,
                None => self.reduced[i] = Some(self.channel.reduce(flat, bucket.class)?),
            }
        }
        Ok(())
    }

    /// A bucket's gradients as one run; zeros where a parameter took no part, and where none lies.
    fn flatten(&self, i: usize) -> Tensor<1> {
        let (bucket, (device, dtype)) = (&self.buckets[i], &self.kinds[i]);
        let sum = |&(slot, offset): &(usize, usize)| Some((offset, self.slots[slot].sum.take()?));
        let sums: Vec<_> = bucket.slots.iter().filter_map(sum).collect();
        let alone = matches!(&sums[..], [(_, sum)] if sum.dims()[0] == bucket.len);
        let flat = join(sums, bucket.len, (device, *dtype));
        if alone && self.worker.is_some() {
            return for_another_thread(flat);
        }
        flat
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
