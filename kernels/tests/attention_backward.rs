//! The gradients of attention, executed on the CPU, against f64.

mod attention_backward {
    mod candidates;
    mod fixture;
    mod golden;
    mod reference;
    mod switches;
    mod targets;
}
