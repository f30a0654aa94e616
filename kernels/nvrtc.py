#!/usr/bin/env python3
"""Compiles CUDA texts by NVRTC, and prints what ptxas says of them; no GPU is needed.

    cargo run -p frontier-kernels --features wgpu --bin cuda -- FOLDER
    kernels/nvrtc.py FOLDER sm_90 [--nvrtc libnvrtc.so.12] [--include CUDA/include]

NVRTC and the headers are NVIDIA's, for example of the packages nvidia-cuda-nvrtc-cu12 and nvidia-cuda-runtime-cu12 of PyPI.
"""

import argparse
import ctypes
import pathlib
import re
import sys


def text_of(library, program, what):
    """The program's `what` (ProgramLog, PTX)."""
    size = ctypes.c_size_t()
    getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    getattr(library, f"nvrtcGet{what}")(program, buffer)
    return buffer.value.decode()


def compiled(library, text, options):
    """Whether `text` compiles, the compiler's log, and the PTX."""
    program = ctypes.c_void_p()
    library.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"kernel.cu", 0, None, None)
    array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    good = library.nvrtcCompileProgram(program, len(options), array) == 0
    log = text_of(library, program, "ProgramLog")
    ptx = text_of(library, program, "PTX") if good else ""
    library.nvrtcDestroyProgram(ctypes.byref(program))
    return good, log, ptx


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("folder", type=pathlib.Path)
    arguments.add_argument("architecture", nargs="?", default="sm_90")
    arguments.add_argument("--nvrtc", default="libnvrtc.so.12", help="the library")
    arguments.add_argument("--include", default="/usr/local/cuda/include", help="where cuda_fp16.h lies")
    given = arguments.parse_args()
    library = ctypes.CDLL(given.nvrtc)
    options = [f"--gpu-architecture={given.architecture}", f"--include-path={given.include}", "--ptxas-options=-v"]
    print("| kernel | registers | spilled bytes | shared memory | mma.sync |\n|---|---:|---:|---:|---:|")
    failed = 0
    for file in sorted(given.folder.glob("*.cu")):
        text = file.read_text()
        good, log, ptx = compiled(library, text, options)
        if not good:
            failed += 1
            print(f"{file.name}:\n{log}", file=sys.stderr)
            continue
        registers = re.search(r"Used (\d+) registers", log)[1]
        spilled = sum(int(bytes) for bytes in re.findall(r"(\d+) bytes spill", log))
        shared = re.match(r"// (\d+) bytes", text)[1]
        print(f"| {file.stem} | {registers} | {spilled} | {shared} | {ptx.count('mma.sync')} |", flush=True)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
