//! Instructions of NVIDIA's GPUs within CUDA C++.

/// The text of `left = d`, where `declaration` declares `d` and `assembly` sets it. Where no NVIDIA compiler reads the text,
/// on the CPU that executes it, `stand_in` does that.
pub(super) fn embedded(left: &str, declaration: &str, assembly: &str, stand_in: &str) -> String {
    format!(
        "{left} = [&]{{ {declaration}\n#ifdef __CUDACC__\n{assembly}\n#else\n{stand_in}\n#endif\nreturn d; }}();\n"
    )
}
