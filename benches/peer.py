"""PyTorch's figures for what `cargo bench --bench kernels` measured, at the same shapes and types.

    cargo bench --bench kernels -- --dtype bf16                       # writes runs/kernels/kernels.csv
    python3 benches/peer.py runs/kernels/kernels.csv > runs/kernels/peer.csv
    cargo bench --bench kernels -- --dtype bf16 --peer runs/kernels/peer.csv

Operations and bytes are those that kernels.csv states. The table goes to standard error, the figures to standard output.
Peers: scaled_dot_product_attention, linear, layer_norm, rms_norm, and their backward passes; other kernels are left out.
Needs torch 2.5 or newer; the device is an NVIDIA or AMD GPU where torch has one, else the CPU.
"""

import argparse
import csv
import statistics
import sys
import time

COLUMNS = ["kernel", "shape", "dtype", "by", "seconds", "spread", "runs", "flops", "bytes", "tflops", "gbs"]


def attention(torch, random, shape, causal):
    batch, heads, kv_heads, seq, head_dim = shape
    q = random(batch, heads, seq, head_dim)
    k, v = (random(batch, kv_heads, seq, head_dim) for _ in range(2))
    product = torch.nn.functional.scaled_dot_product_attention
    return [q, k, v], lambda q, k, v: product(q, k, v, is_causal=causal, enable_gqa=heads != kv_heads)


def evoformer(torch, random, shape):
    batch, n, seq, heads, head_dim = shape
    q, k, v = (random(batch, n, seq, heads, head_dim) for _ in range(3))
    mask, pair = random(batch, n, 1, 1, seq), random(batch, 1, heads, seq, seq)

    def forward(q, k, v, mask, pair):
        q, k, v = (x.transpose(2, 3) for x in (q, k, v))
        product = torch.nn.functional.scaled_dot_product_attention
        return product(q, k, v, attn_mask=mask + pair).transpose(2, 3)

    return [q, k, v, mask, pair], forward


def linear(torch, random, shape, transposed):
    tokens, inner, outer = shape
    x, bias = random(1, tokens, inner), random(outer)
    if transposed:
        return [x, random(outer, inner), bias], torch.nn.functional.linear
    return [x, random(inner, outer), bias], lambda x, w, b: torch.nn.functional.linear(x, w.t(), b)


def layer_norm(torch, random, shape):
    tokens, hidden = shape
    inputs = [random(1, tokens, hidden), random(hidden), random(hidden)]
    return inputs, lambda x, w, b: torch.nn.functional.layer_norm(x, (hidden,), w, b, 1e-5)


def rms_norm(torch, random, shape):
    tokens, hidden = shape
    inputs = [random(1, tokens, hidden), random(hidden)]
    return inputs, lambda x, w: torch.nn.functional.rms_norm(x, (hidden,), w, 1e-5)


PEERS = {
    "attention_causal": lambda torch, random, shape: attention(torch, random, shape, True),
    "attention_full": lambda torch, random, shape: attention(torch, random, shape, False),
    "evoformer": evoformer,
    "linear": lambda torch, random, shape: linear(torch, random, shape, False),
    "linear_nt": lambda torch, random, shape: linear(torch, random, shape, True),
    "layer_norm": layer_norm,
    "rms_norm": rms_norm,
}


def clock(run, wait, budget):
    """Median, spread and number of runs, as benches/kernels/clock.rs defines them."""

    def batch(runs):
        wait()
        start = time.perf_counter()
        for _ in range(runs):
            run()
        wait()
        return time.perf_counter() - start

    batch(1)
    start, once = time.perf_counter(), batch(1)
    while time.perf_counter() - start < budget / 5:
        once = batch(1)
    runs = max(1, min(100, round(5e-3 / once)))
    times, total = [], 0.0
    while total < budget or len(times) < 3:
        total += (seconds := batch(runs))
        times.append(seconds / runs)
    first, median, third = statistics.quantiles(times, n=4, method="inclusive")
    return median, (third - first) / median, runs * len(times)


def measure(torch, row, device, budget):
    """The row of `row`'s peer; none if it has no peer."""
    name = row["kernel"].removesuffix("_backward")
    if name not in PEERS:
        return None
    dtype = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[row["dtype"]]
    shape = [int(n) for n in row["shape"].split("x")]
    backward = name != row["kernel"]
    inputs, forward = PEERS[name](torch, lambda *of: torch.randn(*of, device=device, dtype=dtype), shape)
    if backward:
        inputs = [x.requires_grad_() for x in inputs]
        y = forward(*inputs)
        gradient = torch.randn_like(y)
        run = lambda: torch.autograd.grad(y, inputs, gradient, retain_graph=True)
    else:
        run = lambda: forward(*inputs)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    with torch.set_grad_enabled(backward):
        seconds, spread, runs = clock(run, wait, budget)
    flops, moved = float(row["flops"]), float(row["bytes"])
    return {
        **{column: row[column] for column in ("kernel", "shape", "dtype", "flops", "bytes")},
        "by": f"torch-{torch.__version__}-{device}",
        "seconds": seconds,
        "spread": round(spread, 4),
        "runs": runs,
        "tflops": flops / seconds / 1e12,
        "gbs": moved / seconds / 1e9,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", help="kernels.csv of `cargo bench --bench kernels`")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="cuda is ROCm too [default: cuda where there is one]")
    parser.add_argument("--time", type=float, default=0.5, help="seconds for which each kernel is repeated [default: 0.5]")
    options = parser.parse_args()
    try:
        import torch
    except ImportError as error:
        sys.exit(f"error: no peer to compare with: torch cannot be imported ({error}); `pip install torch` installs it")
    try:
        with open(options.figures, newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        sys.exit(f"error: {error}; run `cargo bench --bench kernels` first")
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    write = csv.DictWriter(sys.stdout, COLUMNS)
    write.writeheader()
    print(f"{'kernel':<32}{'shape':<22}{'time':>12}{'spread':>9}{'TFLOP/s':>12}{'GB/s':>11}", file=sys.stderr)
    for row in rows:
        found = measure(torch, row, device, options.time)
        if found:
            write.writerow(found)
            line = f"{found['kernel']:<32}{found['shape']:<22}{found['seconds'] * 1e6:>9.4g} µs"
            line += f"{100 * found['spread']:>7.0f} %{found['tflops']:>12.4g}{found['gbs']:>11.4g}"
            print(line, file=sys.stderr)


if __name__ == "__main__":
    main()
