"""The job's training speed beside other libraries', and beside what a core can do.

    make bench                                   # makes .venv-peers, measures, writes speed.json
    .venv-peers/bin/python -m benchmarks.speed --write   # docs/performance.md and speed.svg from it

Each measurement is a process of its own on one core and one thread; the rounds go through all of
them in turn, so that what else the machine does strikes all alike. Ratios are of medians.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import timeit
from collections.abc import Sequence
from pathlib import Path

from job.device import cpu_name

FOLDER = Path(__file__).parent
RESULTS, PAGE = FOLDER / "speed.json", FOLDER.parent / "docs" / "performance.md"
BEGIN, END = "<!-- measured by benchmarks/speed.py -->", "<!-- end of what was measured -->"
PEERS = FOLDER.parent / ".venv-peers" / "bin" / "python"
NAMES = ("job", "jax", "keras", "eager", "primer", "sklearn", "dataloader", "lightning")
# Rows so that an epoch is a fraction of a second.
ROWS = {100: 524_288, 512: 131_072, 2048: 131_072}
BATCHES = (256, 1024, 8192, 65_536)
FEATURES = 10


def job_speed(width: int, rows: int, seconds: float, batch: int, *keys: str) -> float:
    """Training rows per second as the manifest would say, over about so many seconds."""
    import torch

    from job.config import load_config
    from job.data import load_data
    from job.device import choose_device, prepare_torch
    from job.model import build_model
    from job.train import train

    def run(epochs: int) -> float:
        config = load_config(
            None,
            [
                *(f"data.samples={rows * 10 // 8}", f"model.hidden=[{width}]", "threads=1"),
                *(f"train.batch_size={batch}", f"train.epochs={epochs}", "device=cpu"),
                *("train.checkpoint={every: 1000000}", *keys),
            ],
        )
        prepare_torch(choose_device(config))
        data = load_data(config.data, config.seed_number, 2**40)
        model = build_model(config, data.training.x, data.training.y)
        with tempfile.TemporaryDirectory() as folder:
            return train(
                model, data, config, torch.device("cpu"), Path(folder), lambda _: None
            ).samples_per_second

    return run(max(1, round(seconds * run(1) / rows)))


def limits() -> list[float]:
    """What one core can do: a matrix product's operations and copied bytes, per second."""
    import torch

    torch.set_num_threads(1)
    a, b, c = (torch.randn(1024, 1024) for _ in range(3))
    source = torch.randn(64 * 2**20)
    target = torch.empty_like(source)

    product, copy = (
        min(timeit.repeat(work, number=1, repeat=10))
        for work in (lambda: torch.mm(a, b, out=c), lambda: target.copy_(source))
    )
    return [2 * 1024**3 / product, 2 * 4 * source.numel() / copy]


def flops(width: int) -> int:
    """Of a row: forward, the weights' gradients and the hidden layer's delta of 10-width-1."""
    return 2 * (2 * (FEATURES + 1) * width + 2 * (width + 1) + width)


def child(*arguments: str) -> list[float]:
    """One process on one core; what it printed."""
    core = str(max(os.sched_getaffinity(0)))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        ["taskset", "-c", core, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
        env=environment,
    )
    got: list[float] = json.loads(done.stdout.splitlines()[-1])
    return got


def measure(names: Sequence[str], widths: Sequence[int], rounds: int, seconds: float) -> None:
    """Writes RESULTS: for each width, batch and name the rows per second of each round."""
    speeds: dict[str, list[float]] = {}
    mine = [sys.executable, "-m", "benchmarks.speed"]
    limit = [child(*mine, "--limits") for _ in range(rounds)]
    for _ in range(rounds):
        for width in widths:
            for name in names:
                command = mine if name == "job" else [str(PEERS), str(FOLDER / "peers.py"), name]
                arguments = [str(v) for v in (width, ROWS[width], seconds, *BATCHES)]
                got = child(*command, *(["--job"] if name == "job" else []), *arguments)
                for batch, speed in zip(BATCHES, got, strict=True):
                    speeds.setdefault(f"{width} {batch} {name}", []).append(speed)
                print(width, name, *(f"{s / 1e6:.2f}" for s in got), file=sys.stderr, flush=True)
    body = {
        "machine": f"{cpu_name()}, {os.cpu_count()} cores, {platform.system()}",
        "date": time.strftime("%Y-%m-%d"),
        "rounds": rounds,
        "flops": max(flop for flop, _ in limit),
        "bytes": max(copied for _, copied in limit),
        "speeds": speeds,
    }
    RESULTS.write_text(json.dumps(body, indent=1) + "\n")


def tables(body: dict[str, object]) -> str:
    """Markdown: ratios first, then the rates with their spread and the share of the limit."""
    speeds: dict[str, list[float]] = body["speeds"]  # type: ignore[assignment]
    limit, copied = (float(str(body[key])) for key in ("flops", "bytes"))
    middle = {key: statistics.median(values) for key, values in speeds.items()}
    cases = list(dict.fromkeys(tuple(key.split()[:2]) for key in speeds))
    names = list(dict.fromkeys(key.split()[2] for key in speeds))
    peers = [name for name in names if name != "job"]
    lines = [
        f"{body['machine']}, one thread, {body['date']}; medians of {body['rounds']} rounds. "
        f"A matrix product runs at {limit / 1e9:.0f} GFLOP/s, a copy at {copied / 1e9:.0f} GB/s.",
        "",
        "The job's rows per second over each peer's:",
        "",
        "| width | batch | " + " | ".join(peers) + " |",
        "|---:|---:|" + "---:|" * len(peers),
    ]
    for width, batch in cases:
        row = [middle[f"{width} {batch} job"] / middle[f"{width} {batch} {name}"] for name in peers]
        lines.append(f"| {width} | {batch} | " + " | ".join(f"{ratio:.2f}" for ratio in row) + " |")
    lines += [
        "",
        "Millions of rows per second, the slowest and the fastest round in brackets, and the "
        "job's share of the matrix product's rate:",
        "",
        "| width | batch | " + " | ".join(names) + " | share |",
        "|---:|---:|" + "---:|" * (len(names) + 1),
    ]
    for width, batch in cases:
        cells = []
        for name in names:
            values = [value / 1e6 for value in speeds[f"{width} {batch} {name}"]]
            cells.append(f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})")
        share = middle[f"{width} {batch} job"] * flops(int(width)) / limit
        lines.append(f"| {width} | {batch} | " + " | ".join(cells) + f" | {share:.0%} |")
    return "\n".join(lines)


def draw(body: dict[str, object], path: Path) -> None:
    """A panel for each width: rows per second by batch, a line for each library."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "speed"  # else the ids in the file are random
    from matplotlib import pyplot as plt

    speeds: dict[str, list[float]] = body["speeds"]  # type: ignore[assignment]
    cases = list(dict.fromkeys(key.split()[0] for key in speeds))
    figure, axes = plt.subplots(1, len(cases), figsize=(3.6 * len(cases), 3.4), sharey=True)
    for axis, width in zip(axes, cases, strict=True):
        for name in dict.fromkeys(key.split()[2] for key in speeds):
            middle = [statistics.median(speeds[f"{width} {b} {name}"]) / 1e6 for b in BATCHES]
            thick = 2.4 if name == "job" else 1.0
            axis.plot(BATCHES, middle, marker=".", linewidth=thick, label=name)
        axis.set(title=f"{width} units", xscale="log", yscale="log", xlabel="rows of a batch")
        axis.set_xticks(BATCHES, [f"{batch:,}" for batch in BATCHES], minor=False)
        axis.minorticks_off()
    axes[0].set_ylabel("million rows per second")
    axes[0].legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def write() -> None:
    """Puts the tables into docs/performance.md and draws docs/speed.svg."""
    body = json.loads(RESULTS.read_text())
    draw(body, PAGE.with_name("speed.svg"))
    before, _, rest = PAGE.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n{tables(body)}\n{END}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limits", action="store_true")
    parser.add_argument("--job", nargs="+", metavar="WIDTH ROWS SECONDS BATCH")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--names", nargs="+", default=NAMES)
    parser.add_argument("--widths", nargs="+", type=int, default=list(ROWS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0)
    options = parser.parse_args()
    if options.limits:
        print(json.dumps(limits()))
    elif options.job:
        width, rows, seconds, *batches = options.job
        speeds = [job_speed(int(width), int(rows), float(seconds), int(b)) for b in batches]
        print(json.dumps(speeds))
    elif options.write:
        write()
    else:
        measure(options.names, options.widths, options.rounds, options.seconds)


if __name__ == "__main__":
    main()
