//! Names for all targets.

/// What a device may offer, given what the compiler can emit.
pub mod lowered_features {
    use cubecl_core::ir::{DeviceProperties, amd::AmdWmma};

    /// A kind of GPU.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum GpuTarget {
        /// NVIDIA.
        Nvptx,
        /// AMD.
        AmdGpu {
            /// The generation of its matrix unit.
            wmma: Option<AmdWmma>,
        },
    }

    /// Called only where LLVM is the default compiler; there every kernel is refused, so nothing is left to restrict.
    pub fn restrict_features(_properties: &mut DeviceProperties, _target: GpuTarget) {}
}
