//! Plans chosen by timing them: no bit of a result depends on the choice, and each is made once.

use std::fs;
use std::path::Path;

use frontier_kernels::gemm::launch::{Arguments, Extras, launch};
use frontier_kernels::gemm::tile::Role;
use frontier_kernels::gemm::{Epilogue, Layout, Plan, Shape, tuned};
use frontier_kernels::matrix::instruction::{Element, Target};
use frontier_kernels::tune::{Counts, Tuner};

use crate::cases::{draw, pack};
use crate::device::{Buffer, Device};

/// `C += A^T B` in f32, with the sums of B over K: what must not be timed on the memory of the results.
struct Accumulation {
    plan: Plan,
    shape: Shape,
    a: Buffer,
    b: Buffer,
    before: [Vec<u8>; 2],
}

impl Accumulation {
    fn new(device: &Device, element: Element) -> Self {
        let [m, n, k] = [139, 267, 70];
        let shape = Shape::contiguous(Layout::Tn, 1, m, n, k, false);
        let epilogue = Epilogue {
            accumulate: true,
            ..Epilogue::default()
        };
        let types = (element, Element::F32);
        let plan = Plan::choose(Target::Portable, types, Layout::Tn, &shape, epilogue).unwrap();
        let given =
            |count, seed| device.buffer(element, &pack(element, &draw(element, count, seed)));
        let before = |count, seed| pack(Element::F32, &draw(Element::F32, count, seed));
        Self {
            plan: plan.with_sums_of(Role::Columns).unwrap().split(),
            shape,
            a: given(m * k, 1),
            b: given(n * k, 2),
            before: [before(m * n, 3), before(n, 4)],
        }
    }

    /// C and the sums that `launch` leaves.
    fn run(&self, device: &Device, launch: impl FnOnce(usize, Arguments)) -> [Vec<u8>; 2] {
        let results = self.before.each_ref();
        let [out, sums] = results.map(|before| device.buffer(Element::F32, before));
        let arguments = Arguments {
            a: self.a.arg(),
            b: self.b.arg(),
            out: out.arg(),
            extras: Extras::default(),
            sums: Some(sums.arg()),
        };
        launch(2, arguments);
        [out, sums].map(|buffer| buffer.bytes(device))
    }

    fn by_plan(&self, device: &Device, plan: &Plan) -> [Vec<u8>; 2] {
        self.run(device, |parts, arguments| {
            launch(&device.client, plan, &self.shape, parts, arguments).unwrap();
        })
    }

    fn tuned(&self, device: &Device, tuner: &Tuner) -> [Vec<u8>; 2] {
        self.run(device, |parts, arguments| {
            let (client, plan, shape) = (&device.client, &self.plan, &self.shape);
            tuned::launch(tuner, client, plan, shape, parts, arguments).unwrap();
        })
    }
}

#[test]
fn every_candidate_gives_the_bits_of_the_table_on_the_device() {
    let Some(device) = Device::find() else { return };
    for element in device.elements() {
        let product = Accumulation::new(&device, element);
        let candidates = product.plan.candidates(&product.shape);
        assert!(candidates.len() > 3, "{candidates:?}");
        let expected = product.by_plan(&device, &product.plan);
        for plan in &candidates[1..] {
            let found = product.by_plan(&device, plan);
            assert!(found == expected, "{element:?}: other bits: {plan:?}");
        }
    }
}

/// Replaces all choices in a folder.
fn spoil(folder: &Path) {
    for file in fs::read_dir(folder).unwrap() {
        fs::write(file.unwrap().path(), "no choice").unwrap();
    }
}

#[test]
fn a_choice_is_timed_once_and_kept_in_the_folder_and_changes_no_bit() {
    let Some(device) = Device::find() else { return };
    let product = Accumulation::new(&device, Element::F32);
    let expected = product.by_plan(&device, &product.plan);
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tune");
    let _ = fs::remove_dir_all(&folder); // What an earlier run left.
    let check = |tuner: &Tuner, timed, found| {
        assert!(product.tuned(&device, tuner) == expected, "other bits");
        let lost = 0;
        assert_eq!(tuner.counts(), Counts { timed, found, lost });
    };
    let tuner = Tuner::new(&folder).unwrap();
    check(&tuner, 1, 0);
    check(&tuner, 1, 0);
    let another = Tuner::new(&folder).unwrap();
    check(&another, 0, 1);
    check(&another, 0, 1);
    spoil(&folder);
    check(&Tuner::new(&folder).unwrap(), 1, 0);
    check(&Tuner::new(&folder).unwrap(), 0, 1);
}
