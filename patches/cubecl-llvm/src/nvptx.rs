//! Names for NVIDIA GPUs.

/// Versions of PTX.
pub mod ptx_version {
    use core::fmt;

    /// A version of PTX.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct PtxVersion(u32);

    impl PtxVersion {
        /// The newest that a driver loads; unknown, since nothing is emitted here.
        pub fn for_driver(_version: i32) -> Option<Self> {
            None
        }
    }

    impl fmt::Display for PtxVersion {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "ptx{}", self.0)
        }
    }
}
