"""A training step of ours beside the same one in PyTorch on this machine's processor, one of each in turn.

    python3 benches/step_vs_torch.py                              # both sizes, fp32 and bf16; about two minutes
    python3 benches/step_vs_torch.py --size 256x256x4 --precision fp32 --compile --steps 20

A pre-norm GPT with biases, learned positions, GELU (tanh) and a tied head; AdamW and clipping as ours. PyTorch begins with our first
weights and has our batch, so the losses of all steps agree: where they do not, the comparison is refused. bf16 is autocast there,
and here `--precision bf16`. Memory is what the process grows by over what it had before the model was made, and its peak.
Needs torch 2.5 or newer.
"""

import argparse
import csv
import json
import multiprocessing
import struct
import sys
import tempfile
import time
from pathlib import Path

import versus

# How far the losses of a step may be apart, relatively.
APART = {"fp32": 2e-4, "bf16": 2e-2}
COLUMNS = ["size", "precision", "by", "ms", "tokens_per_second", "ours_over_torch", "grown_mib", "peak_mib", "steps", "threads"]


def model(torch, options):
    nn, f = torch.nn, torch.nn.functional
    hidden, heads = options["hidden"], options["heads"]

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.ln_1, self.ln_2 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
            self.c_attn, self.attn_proj = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)
            self.c_fc, self.mlp_proj = nn.Linear(hidden, 4 * hidden), nn.Linear(4 * hidden, hidden)

        def forward(self, x):
            batch, sequence, _ = x.shape
            qkv = self.c_attn(self.ln_1(x)).view(batch, sequence, 3, heads, hidden // heads)
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            y = f.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.attn_proj(y.transpose(1, 2).reshape(batch, sequence, hidden))
            return x + self.mlp_proj(f.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))

    class Gpt(nn.Module):
        def __init__(self):
            super().__init__()
            self.wte, self.wpe = (nn.Embedding(options[size], hidden) for size in ("vocabulary", "sequence"))
            self.h = nn.ModuleList(Block() for _ in range(options["layers"]))
            self.ln_f = nn.LayerNorm(hidden)

        def forward(self, x, y):
            h = self.wte(x) + self.wpe.weight
            for block in self.h:
                h = block(h)
            logits = self.ln_f(h) @ self.wte.weight.T
            return f.cross_entropy(logits.view(-1, options["vocabulary"]), y.view(-1))

    return Gpt()


def load(torch, gpt, path):
    """Gives the model the tensors of a Hugging Face GPT-2, whose linear layers are transposed."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    entries = json.loads(data[8 : 8 + length])
    state = {}
    for name, entry in entries.items():
        if name == "__metadata__":
            continue
        begin, end = (8 + length + at for at in entry["data_offsets"])
        dtype = {"F32": torch.float32, "BF16": torch.bfloat16}[entry["dtype"]]
        values = torch.frombuffer(bytearray(data[begin:end]), dtype=dtype).float().view(entry["shape"])
        linear = name.endswith("weight") and any(part in name for part in ("c_attn", "c_proj", "c_fc"))
        name = name.removeprefix("transformer.").replace("attn.c_attn", "c_attn").replace("mlp.c_fc", "c_fc")
        name = name.replace("attn.c_proj", "attn_proj").replace("mlp.c_proj", "mlp_proj")
        state[name] = values.T if linear else values
    gpt.load_state_dict(state)


class Theirs:
    """The step in PyTorch."""

    def __init__(self, options, weights):
        self.torch = versus.torch(options["threads"])
        self.before = versus.memory()
        self.bf16 = options["precision"] == "bf16"
        gpt = model(self.torch, options)
        load(self.torch, gpt, weights)
        self.parameters = list(gpt.parameters())
        groups = [
            {"params": [p for p in self.parameters if p.dim() > 1], "weight_decay": 0.1},
            {"params": [p for p in self.parameters if p.dim() < 2], "weight_decay": 0.0},
        ]
        self.optimizer = self.torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), eps=1e-8, fused=True)
        sequence, vocabulary = options["sequence"], options["vocabulary"]
        tokens = [[(i * 7919 + t * 104729) % vocabulary for t in range(sequence + 1)] for i in range(options["batch"])]
        tokens = self.torch.tensor(tokens)
        self.x, self.y = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        self.gpt = self.torch.compile(gpt) if options["compile"] else gpt

    def step(self):
        torch, start = self.torch, time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            loss = self.gpt(self.x, self.y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.perf_counter() - start, loss.item()


def compare(options, program, answer):
    """Steps in turn, in a process of its own, so that a peak is this case's."""
    with tempfile.TemporaryDirectory() as folder:
        sizes = ("layers", "hidden", "heads", "sequence", "batch", "vocabulary", "precision")
        arguments = [argument for size in sizes for argument in (f"--{size}", str(options[size]))]
        ours = versus.Ours(program, [*arguments, "--peer", folder], options["threads"])
        if (said := ours.line()) != "ready":
            sys.exit(f"error: our program says `{said}`, not `ready`")
        theirs = Theirs(options, Path(folder) / "model" / "model.safetensors")
        times = {"ours": [], "torch": []}
        for step in range(options["steps"] + 2):
            mine, loss = (float(number) for number in ours.ask("step").split())
            time.sleep(0.02)  # Threads that wait stop spinning.
            other, other_loss = theirs.step()
            time.sleep(0.02)
            if abs(loss - other_loss) > APART[options["precision"]] * abs(other_loss):
                sys.exit(f"error: not the same step: our loss {loss} and PyTorch's {other_loss} in step {step + 1}")
            if step > 1:  # The first ones warm up.
                times["ours"].append(mine)
                times["torch"].append(other)
        # Until our model is made there are the program and its libraries, a few MiB.
        mine, other = versus.memory(ours.process.pid), versus.memory()
        grown = {"ours": mine and mine[1], "torch": other and other[1] - theirs.before[0]}
        peak = {"ours": mine and mine[1], "torch": other and other[1]}
        ours.end()
    answer.put((times, grown, peak, loss, other_loss, theirs.torch.__version__))


def show(options, found):
    """Prints a case, and gives its rows."""
    times, grown, peak, loss, other_loss, version = found
    size = "x".join(str(options[n]) for n in ("hidden", "sequence", "batch"))
    tokens = options["batch"] * options["sequence"]
    # Pairs stood side by side, so what else the machine did met both.
    ratio = versus.median(b / a for a, b in zip(times["ours"], times["torch"]))
    rows = []
    for by in ("ours", "torch"):
        seconds = versus.median(times[by])
        name = "burn-frontier" if by == "ours" else f"torch-{version}" + ("-compile" if options["compile"] else "")
        figures = [1e3 * seconds, tokens / seconds, ratio if by == "ours" else 1.0]
        words = [f"{1e3 * seconds:10.1f}", f"{tokens / seconds:10.0f}", f"{figures[2]:8.2f}"]
        words += ["-".rjust(10) if m is None else f"{m:10.0f}" for m in (grown[by], peak[by])]
        print(f"{size:<14}{options['precision']:<6}{name:<28}" + "".join(words))
        figures += [grown[by], peak[by], len(times[by]), options["threads"]]
        rows.append(dict(zip(COLUMNS, [size, options["precision"], name, *figures])))
    print(f"{'':<20}losses of the last step {loss:.5f} and {other_loss:.5f}")
    return rows


def arguments():
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    sizes = ["256x256x4", "512x1024x1"]
    parser.add_argument("--size", nargs="+", default=sizes, metavar="HIDDENxSEQUENCExBATCH", help=f"[default: {' '.join(sizes)}]")
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"], help="[default: both]")
    parser.add_argument("--layers", type=int, default=4, help="[default: 4]")
    parser.add_argument("--heads", type=int, default=8, help="[default: 8]")
    parser.add_argument("--vocabulary", type=int, default=8192, help="[default: 8192]")
    parser.add_argument("--steps", type=int, default=10, help="pairs that are timed [default: 10]")
    parser.add_argument("--threads", type=int, default=versus.cores(), help="of each [default: this machine's cores]")
    parser.add_argument("--compile", action="store_true", help="PyTorch by torch.compile, which needs a C++ compiler")
    parser.add_argument("--csv", metavar="FILE", help="also write the figures there")
    options = parser.parse_args()
    if min(options.steps, options.threads, options.layers, options.heads, options.vocabulary) < 1:
        parser.error("sizes, steps and threads begin at 1")
    options.shapes = []
    for size in options.size:
        numbers = [int(n) if n.isdigit() else 0 for n in size.split("x")]
        if len(numbers) != 3 or 0 in numbers:
            parser.error(f"--size {size}: expected HIDDENxSEQUENCExBATCH such as 256x256x4")
        options.shapes.append(dict(zip(("hidden", "sequence", "batch"), numbers)))
    return options


def main():
    options = arguments()
    versus.torch(options.threads)  # Before anything is built.
    program = versus.build("training_step")
    print(f"{'hidden, tokens':<14}{'':<6}{'':<28}{'ms a step':>10}{'tokens/s':>10}{'ratio':>8}{'grown MiB':>10}{'peak MiB':>10}")
    rows, processes = [], multiprocessing.get_context("spawn")
    for shape in options.shapes:
        for precision in options.precision:
            case = {**vars(options), **shape, "precision": precision}
            answer = processes.Queue()
            process = processes.Process(target=compare, args=(case, program, answer))
            process.start()
            process.join()
            if process.exitcode:
                sys.exit(process.exitcode)
            rows += show(case, answer.get())
    if options.csv:
        with open(options.csv, "w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
