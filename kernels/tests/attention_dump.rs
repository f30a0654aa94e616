#[path = "cases/mod.rs"]
mod cases;
use frontier_kernels::attention::{Plan, Problem};
use frontier_kernels::matrix::instruction::{Element, Target};
use std::time::Instant;
#[test]
fn dump() {
    for (target, element, drop) in [(Target::Gfx90a, Element::F16, false), (Target::Gfx90a, Element::F16, true),(Target::Gfx90a, Element::F32, true),(Target::Gfx1100, Element::F16, false),(Target::Gfx1100, Element::F16, true)] {
        let mut problem = Problem::new(2, 2, 50, 90, 32).causal(true);
        if drop { cases::attention::dropout(&mut problem);}
        let plan = Plan::choose(target, element, &problem).unwrap();
        let t = Instant::now();
        let source = plan.source().unwrap();
        eprintln!("{} emit {:?} {} bytes", source.name, t.elapsed(), source.text.len());
        std::fs::write(format!("/tmp/scratch/attn/{}.hip", source.name), &source.text).unwrap();
        let t = Instant::now();
        let h = frontier_kernels::hip::compile::compile(&source).unwrap();
        eprintln!("   gpu {:?} {:?}", t.elapsed(), h.usage);
        if drop { continue; }
        let p = fma(element, &problem);
    }
}
fn fma(element: Element, problem: &Problem) {
        let plan = cases::attention::fma(Target::Gfx90a, element, problem);
        let t = Instant::now();
        let source = plan.source().unwrap();
        eprintln!("{} emit {:?} {} bytes", source.name, t.elapsed(), source.text.len());
        std::fs::write(format!("/tmp/scratch/attn/{}.hip", source.name), &source.text).unwrap();
}
