"""Convolutions of science models, forward and both gradients: ours beside PyTorch's on this machine's processor, in turn.

    python3 benches/conv_vs_torch.py                     # all shapes; about two minutes
    python3 benches/conv_vs_torch.py DeepCAM --burn      # those whose name contains it; Burn's too

Ours are `burn_frontier::ops::convolution`, as one rank of a program calls them; tensors are f32, contiguous, channels first, without
bias. Both have the same numbers, and what they compute is compared: where a result or a gradient differs, the script ends with an
error. Of each shape there are several pairs of medians, in turn; ratios are the medians of the pairs'. Needs torch 2.0 or newer.
"""

import argparse
import csv
import json
import sys
import time

import versus

# How far a norm or an inner product may be off, relative to the norm.
APART = 1e-4
COLUMNS = ["name", "by", "forward_ms", "backward_ms", "forward_ratio", "backward_ratio", "rounds", "threads", "torch"]


def numbers(torch, seed, shape):
    """As `number` of benches/convolution.rs."""
    count = 1
    for size in shape:
        count *= size
    mixed = (torch.arange(count, dtype=torch.int64) + seed * 1000003) * 2654435761 % (1 << 32)
    mixed = (mixed ^ (mixed >> 16)) * 73244475 % (1 << 32)
    return ((mixed >> 22).float() / 512 - 1).view(shape)


def sums(torch, seed, x):
    x = x.detach().double().flatten()
    return {"product": torch.dot(x, numbers(torch, seed, x.shape).double()).item(), "norm": x.norm().item()}


def repeat(seconds, work):
    """Median seconds of what is repeated for so long, the first time apart; and what the last time gave."""
    _, last = work()
    start, times = time.perf_counter(), []
    while len(times) < 3 or time.perf_counter() - start < seconds:
        elapsed, last = work()
        times.append(elapsed)
    return versus.median(times), last


class Theirs:
    """A convolution in PyTorch."""

    def __init__(self, torch, shape):
        self.torch, f, dimensions = torch, torch.nn.functional, len(shape["input"])
        inputs, outputs = shape["channels"]
        rest = [shape["taps"]] * dimensions
        same = {key: shape[key] for key in ("stride", "padding", "dilation", "groups")}
        if shape["transposed"]:
            weight = [inputs, outputs // shape["groups"], *rest]
            convolve = {2: f.conv_transpose2d, 3: f.conv_transpose3d}[dimensions]
            same["output_padding"] = shape["padding_out"]
        else:
            weight = [outputs, inputs // shape["groups"], *rest]
            convolve = {2: f.conv2d, 3: f.conv3d}[dimensions]
        self.convolve = lambda x, w: convolve(x, w, **same)
        self.x, self.w = numbers(torch, 1, [shape["batch"], inputs, *shape["input"]]), numbers(torch, 2, weight)
        self.dy = None

    def forward(self):
        with self.torch.no_grad():
            start = time.perf_counter()
            y = self.convolve(self.x, self.w)
            return time.perf_counter() - start, y

    def backward(self):
        x, w = (t.detach().requires_grad_() for t in (self.x, self.w))
        y = self.convolve(x, w)
        start = time.perf_counter()
        gradients = self.torch.autograd.grad(y, [x, w], self.dy)
        return time.perf_counter() - start, gradients

    def measure(self, seconds):
        forward, y = repeat(seconds, self.forward)
        if self.dy is None:
            self.dy = numbers(self.torch, 3, y.shape)
        backward, gradients = repeat(seconds, self.backward)
        of = [sums(self.torch, seed, x) for seed, x in zip((4, 5, 6), (y, *gradients))]
        return {"forward": forward, "backward": backward, "sums": of}


def same(name, mine, other):
    """Ends the program where the two have computed different things."""
    for what, a, b in zip(("result", "gradient of x", "gradient of the kernel"), mine["sums"], other["sums"]):
        if max(abs(a[key] - b[key]) for key in a) > APART * max(b["norm"], 1e-30):
            sys.exit(f"error: {name}: the {what} is not PyTorch's: {a}, and there {b}")


def compare(torch, programs, index, shape, options):
    """Medians of all rounds, by who; and the medians of the ratios."""
    theirs, found = Theirs(torch, shape["shape"]), {}
    for _ in range(options.rounds):
        for by, program in programs.items():
            found.setdefault(by, []).append(json.loads(program.ask(index)))
        time.sleep(0.02)  # Threads that wait stop spinning.
        found.setdefault("torch", []).append(theirs.measure(options.time))
        time.sleep(0.02)
        for by in programs:
            same(f"{shape['name']} by {by}", found[by][-1], found["torch"][-1])
    median = lambda by, key: versus.median(one[key] for one in found[by])
    times = {by: [1e3 * median(by, key) for key in ("forward", "backward")] for by in found}
    pairs = lambda by, key: versus.median(b[key] / a[key] for a, b in zip(found[by], found["torch"]))
    return times, {by: [pairs(by, key) for key in ("forward", "backward")] for by in found}


def table(torch, programs, options):
    shapes = [json.loads(program.line()) for program in programs.values()][0]
    heads = [f"{by} {what}" for by in [*programs, "torch"] for what in ("fwd", "bwd")]
    print(f"{'ms; ratio: PyTorch / ours':<60}" + "".join(f"{head:>11}" for head in heads) + f"{'ratio fwd':>11}{'bwd':>6}", flush=True)
    rows = []
    for index, shape in enumerate(shapes):
        times, ratios = compare(torch, programs, index, shape, options)
        columns = "".join(f"{t:>11.2f}" for by in times for t in times[by])
        print(f"{shape['name']:<60}{columns}{ratios['ours'][0]:>11.2f}{ratios['ours'][1]:>6.2f}", flush=True)
        for by in times:
            figures = [shape["name"], by, *times[by], *ratios[by], options.rounds, options.threads, torch.__version__]
            rows.append(dict(zip(COLUMNS, figures)))
    return rows


def main():
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("filter", nargs="?", default="", help="shapes whose name contains it [default: all]")
    parser.add_argument("--rounds", type=int, default=3, help="pairs of each shape [default: 3]")
    parser.add_argument("--time", type=float, default=0.1, help="seconds for which each is repeated in a round [default: 0.1]")
    parser.add_argument("--threads", type=int, default=versus.cores(), help="of each [default: this machine's cores]")
    parser.add_argument("--burn", action="store_true", help="also Burn's own convolutions")
    parser.add_argument("--csv", metavar="FILE", help="also write the figures there")
    options = parser.parse_args()
    if options.rounds < 1 or options.threads < 1:
        parser.error("--rounds and --threads begin at 1")
    torch, program = versus.torch(options.threads), versus.build("convolution")
    arguments = [options.filter, "--time", str(options.time), "--peer"]
    programs = {"ours": versus.Ours(program, arguments, options.threads)}
    if options.burn:
        programs["burn"] = versus.Ours(program, [*arguments, "--burn"], options.threads)
    rows = table(torch, programs, options)
    for program in programs.values():
        program.end()
    if options.csv:
        with open(options.csv, "w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
