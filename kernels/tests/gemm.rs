//! The products, executed on the CPU harness, agree with the f64 reference.

mod gemm {
    mod candidates;
    mod epilogues;
    mod fixture;
    mod layouts;
    mod many;
}
