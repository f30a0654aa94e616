//! What a device's kernels are generated for.

use cubecl_core::client::Client;

use crate::matrix::instruction::Target;

/// A target and why it was chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// What kernels are generated for.
    pub target: Target,
    /// One sentence for the user.
    pub reason: String,
}

/// The first compute capability that has `mma.sync.m16n8k16`, times ten.
const MMA_SINCE: u32 = 80;

/// An NVIDIA GPU's compute capability times ten: what CubeCL writes behind `sm`, `ptx_sm90` for instance.
fn capability(fingerprint: &str) -> Option<u32> {
    let (_, number) = fingerprint.split_once("sm")?;
    let end = number.find(|c: char| !c.is_ascii_digit());
    number[..end.unwrap_or(number.len())].parse().ok()
}

/// The target of a device.
pub fn choose(client: &Client) -> Choice {
    let identity = &client.properties().identity;
    of(client.name(), &identity.name, &identity.fingerprint)
}

/// As [`choose`], without its reason.
pub(crate) fn target(client: &Client) -> Target {
    found(client.name(), &client.properties().identity.fingerprint).0
}

/// `runtime` is CubeCL's name of it; the fingerprint names the architecture.
fn of(runtime: &str, device: &str, fingerprint: &str) -> Choice {
    let (target, why) = found(runtime, fingerprint);
    Choice {
        target,
        reason: format!("{device} ({runtime}) is {why}"),
    }
}

fn found(runtime: &str, fingerprint: &str) -> (Target, &'static str) {
    let has = |arch: &str| fingerprint.contains(arch);
    match runtime {
        "hip" if has("gfx90a") => (Target::Gfx90a, "CDNA2: MFMA instructions, wave of 64"),
        "hip" if has("gfx94") => (Target::Gfx942, "CDNA3: MFMA instructions, wave of 64"),
        "hip" if has("gfx110") => (Target::Gfx1100, "RDNA3: WMMA instructions, wave of 32"),
        "hip" => (
            Target::Portable,
            "an AMD GPU whose matrix instructions are not in the table: plain multiply-adds",
        ),
        "cuda" if capability(fingerprint).is_some_and(|it| it < MMA_SINCE) => (
            Target::Portable,
            "NVIDIA before compute capability 8.0, which lacks the matrix instructions that the kernels take: plain multiply-adds",
        ),
        "cuda" => (Target::Cuda, "NVIDIA: mma.sync instructions, warp of 32"),
        _ => (
            Target::Portable,
            "nothing is assumed of it: plain multiply-adds, no plane operations",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_gets_the_kernels_of_its_architecture() {
        for (runtime, fingerprint, target) in [
            ("hip", "hip-kernel_gfx90a:sramecc+:xnack-", Target::Gfx90a),
            ("hip", "hip-kernel_gfx942:sramecc+", Target::Gfx942),
            ("hip", "hip-kernel_gfx1100", Target::Gfx1100),
            ("hip", "hip-kernel_gfx1030", Target::Portable),
            ("cuda", "ptx_sm90", Target::Cuda),
            ("cuda", "ptx_sm100", Target::Cuda),
            ("cuda", "ptx_sm80", Target::Cuda),
            ("cuda", "ptx_sm75", Target::Portable),
            ("wgpu<spirv>", "llvmpipe", Target::Portable),
        ] {
            let choice = of(runtime, "a GPU", fingerprint);
            assert_eq!(choice.target, target, "{fingerprint}");
            assert!(choice.reason.contains("a GPU"), "{}", choice.reason);
        }
    }
}
