"""What the comparisons with PyTorch share: our program at the other end of two pipes, and figures."""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def torch(threads):
    """PyTorch, with so many threads; or an end that says what is missing."""
    try:
        import torch
    except ImportError as error:
        sys.exit(f"error: nothing to compare with: torch cannot be imported ({error}); `pip install torch` installs it")
    torch.set_num_threads(threads)
    return torch


def build(bench):
    """Our benchmark of that name, built as `cargo xtask bench` builds it."""
    command = ["cargo", "bench", "--profile", "dev", "--bench", bench, "--no-run", "--message-format=json-render-diagnostics"]
    try:
        built = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    except OSError as error:
        sys.exit(f"error: `{' '.join(command)}` cannot be started: {error}; https://rustup.rs installs Cargo")
    if built.returncode:
        sys.exit(f"error: `{' '.join(command)}` failed")
    for line in built.stdout.splitlines():
        message = json.loads(line)
        if message.get("executable") and message["target"]["name"] == bench:
            return message["executable"]
    sys.exit(f"error: `{' '.join(command)}` names no program")


class Ours:
    """A program of ours that answers each line with a line."""

    def __init__(self, program, arguments, threads):
        environment = {**os.environ, "RAYON_NUM_THREADS": str(threads)}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen([program, *arguments], stdin=pipe, stdout=pipe, text=True, env=environment, cwd=ROOT)

    def line(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"error: our program ended with {self.process.wait()}; what it said is above")
        return line.rstrip("\n")

    def ask(self, question=""):
        self.process.stdin.write(f"{question}\n")
        self.process.stdin.flush()
        return self.line()

    def end(self):
        self.process.stdin.close()
        self.process.wait()


def cores():
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def memory(process="self"):
    """Resident MiB of a process, now and at most so far; nothing where the system does not say."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in lines)
    return tuple(int(fields[key].split()[0]) / 1024 for key in ("VmRSS", "VmHWM"))


median = statistics.median
