//! The gradients of attention, executed on the CPU, against f64.

mod attention_backward {
    #[path = "../cases/biases.rs"]
    mod biases;
    mod candidates;
    #[path = "../cases/evoformer.rs"]
    mod evoformer;
    mod fixture;
    mod golden;
    mod reference;
    mod switches;
    mod targets;
}
