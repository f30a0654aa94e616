//! The program that runs a kernel on the CPU: its text and the harness of `kernels/hip/`, compiled.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::Sanitizer;
use crate::error::Result;
use crate::hip::emit::Source;
use crate::hip::text;
use crate::hip::tools::{self, compile, fingerprint, made_once, write};

/// The harness: what a kernel includes, and what it is linked with.
const FILES: [(&str, &str); 15] = [
    ("arithmetic.h", include_str!("../../../hip/arithmetic.h")),
    ("cpu.h", include_str!("../../../hip/cpu.h")),
    (
        "cpu_builtins.h",
        include_str!("../../../hip/cpu_builtins.h"),
    ),
    ("fiber.h", include_str!("../../../hip/fiber.h")),
    ("harness.cpp", include_str!("../../../hip/harness.cpp")),
    ("harness.h", include_str!("../../../hip/harness.h")),
    ("launch.h", include_str!("../../../hip/launch.h")),
    ("matrix.h", include_str!("../../../hip/matrix.h")),
    ("order.h", include_str!("../../../hip/order.h")),
    ("sanitizers.h", include_str!("../../../hip/sanitizers.h")),
    ("types.h", include_str!("../../../hip/types.h")),
    ("cpu_cuda.h", include_str!("../../../hip/cpu_cuda.h")),
    // The headers that a text with f16 or bf16 asks for; their types are in types.h and cpu_cuda.h.
    ("cuda_bf16.h", "#pragma once\n"),
    ("cuda_fp16.h", "#pragma once\n"),
    ("hip/hip_bf16.h", "#pragma once\n"),
];

/// Every x86-64 processor since 2013: conversions of f16 are instructions, and the programs may be kept in a cache that
/// machines share.
const COMMON: [&str; 3] = ["-std=c++17", "-march=x86-64-v3", "-fno-exceptions"];
/// The text is written for hipRTC and NVRTC, whose warnings nobody sees either, and which let it read values as words.
const KERNEL: [&str; 3] = ["-w", "-ffp-contract=on", "-fno-strict-aliasing"];
/// A compilation takes about a second.
const LIMIT: Duration = Duration::from_secs(300);

impl Sanitizer {
    /// How the kernel is compiled and linked.
    fn kernel_flags(self) -> &'static [&'static str] {
        match self {
            Self::None => &["-O1"],
            Self::Thread => &["-O1", "-gline-tables-only", "-fsanitize=thread"],
            Self::Address => &[
                "-O1",
                "-gline-tables-only",
                "-fsanitize=address,undefined",
                "-fno-sanitize-recover=all",
                "-DFRONTIER_CHECKED",
            ],
        }
    }

    /// How the harness is compiled: never watched itself, but it tells the sanitizer about its fibers.
    fn harness_flags(self) -> &'static [&'static str] {
        match self {
            Self::None => &["-O2"],
            Self::Thread => &["-O2", "-DFRONTIER_TSAN"],
            Self::Address => &["-O2", "-DFRONTIER_ASAN"],
        }
    }
}

/// The program of this kernel under this sanitizer, compiled if it is not in the cache.
pub fn of(source: &Source, sanitizer: Sanitizer) -> Result<PathBuf> {
    let harness = harness(sanitizer)?;
    let folder = harness.parent().map_or_else(PathBuf::new, Path::to_owned);
    let unit = unit(source);
    let name = fingerprint((&unit, KERNEL, sanitizer.kernel_flags()));
    made_once(&folder, &name, |program| {
        // Under its lasting name, because reports of the sanitizers point into it.
        let text = made_once(&folder, &format!("{name}.cpp"), |file| {
            write(file, unit.as_bytes())
        })?;
        let mut command = Command::new(tools::clang()?);
        command
            .args(COMMON)
            .args(sanitizer.kernel_flags())
            .args(KERNEL)
            .arg("-I")
            .arg(&folder)
            .arg(text)
            .arg(&harness)
            .arg("-o")
            .arg(program);
        compile(&mut command, &folder, &source.name, LIMIT)
    })
}

/// What is compiled: the text between the harness's headers and a call of its entry.
fn unit(source: &Source) -> String {
    let Source {
        name, entry, text, ..
    } = source;
    let shared: String = text::shared_memory(text)
        .map(|name| format!("#define {name} frontier_shared\n"))
        .collect();
    // To the sanitizer, a reference to what follows an array is no access yet.
    let text = text.replace(
        "{ return data[i]; }",
        "{ frontier::check(i, N); return data[i]; }",
    );
    let wave = source.target.lanes();
    format!(
        "#define FRONTIER_WAVE {wave}\n#include \"cpu.h\"\n{shared}#line 1 \"{name}.hip\"\n{text}\n\
         extern \"C\" void frontier_call(void* const* arguments) {{ frontier::call({entry}, arguments); }}\n"
    )
}

/// The compiled harness, in the folder that also has its headers.
fn harness(sanitizer: Sanitizer) -> Result<PathBuf> {
    let clang = tools::clang()?;
    let folder = tools::cache()?.join(fingerprint((FILES, COMMON, clang)));
    for (name, text) in FILES {
        made_once(&folder, name, |file| write(file, text.as_bytes()))?;
    }
    let name = format!("harness-{}.o", fingerprint(sanitizer.harness_flags()));
    made_once(&folder, &name, |object| {
        let mut command = Command::new(clang);
        command
            .args(COMMON)
            .args(sanitizer.harness_flags())
            // Neither warnings nor calls of memcpy, which the thread sanitizer would take for the scheduler's accesses.
            .args(["-Wall", "-Wextra", "-Werror", "-fno-builtin", "-c"])
            .arg(folder.join("harness.cpp"))
            .arg("-o")
            .arg(object);
        compile(&mut command, &folder, "the harness", LIMIT)
    })
}
