//! Cross entropy over a split vocabulary.

use frontier_kernels::cross_entropy::launch::{self, Combined, Vocabulary};
use frontier_kernels::hip::run::bytes;
use frontier_kernels::matrix::instruction::{Element, Target};

use crate::cases::cross_entropy::{Case, IGNORE, Run, Shard, TOKENS};
use crate::cases::{pack, unwritten};
use crate::device::Device;

fn vocabulary(shard: &Shard) -> Vocabulary {
    Vocabulary {
        start: shard.start as u32,
        valid: shard.valid as u32,
        ignore: IGNORE,
    }
}

impl Run for Device {
    fn statistics(&self, shard: &Shard, targets: &[i32]) -> Vec<f64> {
        let logits = self.buffer(shard.plan.element(), &shard.logits);
        let targets = self.buffer(Element::I32, &bytes(targets));
        let stats = self.buffer(Element::F32, &unwritten(Element::F32, 3 * TOKENS));
        let (logits, targets) = (logits.arg(), targets.arg());
        launch::statistics(
            &self.client,
            &shard.plan,
            logits,
            targets,
            stats.arg(),
            TOKENS,
            vocabulary(shard),
        )
        .unwrap();
        stats.numbers(self)
    }

    fn gradient(&self, shard: &Shard, targets: &[i32], combined: [&[f64]; 3]) -> Vec<f64> {
        let logits = self.buffer(shard.plan.element(), &shard.logits);
        let targets = self.buffer(Element::I32, &bytes(targets)).arg();
        let [largest, sum, scale] = combined.map(|numbers| {
            self.buffer(Element::F32, &pack(Element::F32, numbers))
                .arg()
        });
        let combined = Combined {
            largest,
            sum,
            scale,
        };
        launch::gradient(
            &self.client,
            &shard.plan,
            logits.arg(),
            targets,
            combined,
            TOKENS,
            vocabulary(shard),
        )
        .unwrap();
        logits.numbers(self)
    }
}

#[test]
fn cross_entropy_of_any_vocabulary_equals_the_definition() {
    let Some(device) = Device::find() else { return };
    for element in device.elements() {
        for (vocabulary, ranks, columns) in
            [(7, 1, 7), (1000, 1, 1024), (100, 3, 50), (9001, 1, 9001)]
        {
            Case::new(element, vocabulary).check(&device, Target::Portable, ranks, columns);
        }
    }
}
