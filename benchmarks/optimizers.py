"""Every optimizer on every kind of data, at several learning rates: how near it comes to the truth.

    OMP_NUM_THREADS=1 python -m benchmarks.optimizers        # measures, writes optimizers.json
    .venv-peers/bin/python -m benchmarks.optimizers --draw   # docs/optimizers.md and .svg from it

Drawing needs matplotlib, which is in the environment that `make bench` makes; measuring needs the
job alone.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, get_args

import torch

from job.config import Data, load_config
from job.config.schema import SGD, Adam, AdamW, AdamX, AdamZ
from job.data import load_data
from job.device import choose_device, cpu_name, memory_limit, prepare_torch
from job.errors import Diverged
from job.model import build_model
from job.train import EpochRecord, evaluate, train

KINDS = ("noise", "linear", "friedman1", "gaussians")
OPTIMIZERS = [
    get_args(model.model_fields["name"].annotation)[0] for model in (Adam, AdamW, AdamX, AdamZ, SGD)
]
CAPPED = "adamz, max_lr 10 lr"  # as the job's warning advises
RATES = (0.001, 0.003, 0.01, 0.03, 0.1)
SEEDS = (0, 1, 2)
# 1,000 steps on 10,000 training rows.
KEYS = ("data.samples=12500", "train.batch_size=250", "train.epochs=25")

DOCS = Path(__file__).parent.parent / "docs"
RESULTS = Path(__file__).with_suffix(".json")
BEGIN, END = "<!-- measured by benchmarks/optimizers.py -->", "<!-- end of what was measured -->"


@dataclass(frozen=True)
class Run:
    """One training; the excess risk is in the target's units squared, or in nats."""

    kind: str
    optimizer: str
    lr: float
    seed: int
    steps: list[int]  # at the end of each epoch
    validation: list[float]  # excess risk there; empty if the training diverged
    test: float | None  # excess risk at the end
    last_lr: float | None  # of the last step: AdamZ adjusts it


def measure(
    rates: Iterable[float] = RATES,
    seeds: Iterable[int] = SEEDS,
    keys: Iterable[str] = KEYS,
) -> Iterator[Run]:
    """Trains with every combination, each with its optimizer's defaults and a constant schedule."""
    for kind, seed, name, lr in product(KINDS, seeds, (*OPTIMIZERS, CAPPED), rates):
        loss = "cross_entropy" if Data.model_construct(kind=kind).class_count else "mse"
        capped = {"name": "adamz", "max_lr": 10 * lr}
        optimizer = json.dumps({"lr": lr, **(capped if name == CAPPED else {"name": name})})
        overrides = (f"data.kind={kind}", f"train.loss={loss}", f"train.optimizer={optimizer}")
        more = (f"seed={seed}", "train.schedule={name: constant}", "train.checkpoint={every: 1000}")
        yield _run(kind, name, lr, seed, [*keys, *overrides, *more, "device=cpu", "threads=1"])


def _run(kind: str, name: str, lr: float, seed: int, overrides: list[str]) -> Run:
    config = load_config(None, overrides)
    device = choose_device(config)
    prepare_torch(device)
    data = load_data(config.data, seed, memory_limit())
    model = build_model(config, data.training.x, data.training.y, len(data.classes))
    told: list[EpochRecord] = []
    try:
        with tempfile.TemporaryDirectory() as folder:
            train(model, data, config, device.torch, Path(folder), told.append)
        test = evaluate(model, data.test, config.train, device.torch)["excess_risk"]
    except Diverged:
        return Run(kind, name, lr, seed, [], [], None, None)
    risks = [record.validation["excess_risk"] or 0.0 for record in told]
    steps = [record.steps for record in told]
    return Run(kind, name, lr, seed, steps, risks, test, told[-1].learning_rate)


def write(runs: Iterable[Run], path: Path) -> None:
    """What was measured and on what, as JSON; a line a run."""
    head: dict[str, Any] = {
        "machine": f"{os.cpu_count()} cores of {cpu_name()}",
        "command": "OMP_NUM_THREADS=1 python -m benchmarks.optimizers",
        "torch": torch.__version__,
        "keys": list(KEYS),
    }
    lines = []
    for run in runs:
        values = asdict(run) | {"validation": [float(f"{v:.4g}") for v in run.validation]}
        lines.append(json.dumps(values))
        print(run.kind, run.optimizer, run.lr, run.seed, run.test, file=sys.stderr)
    path.write_text(json.dumps(head)[:-1] + ',\n"runs": [\n' + ",\n".join(lines) + "\n]}\n")


def read(path: Path) -> tuple[dict[str, Any], list[Run]]:
    """What `write` wrote: what it was measured on, and the runs."""
    head = json.loads(path.read_text())
    return head, [Run(**values) for values in head.pop("runs")]


def over_seeds(runs: Iterable[Run], what: str) -> tuple[float, float]:
    """The median and the largest; infinite where a training diverged."""
    values = [getattr(run, what) for run in runs]
    known = [float("inf") if value is None else value for value in values]
    return statistics.median(known), max(known)


def of(runs: Iterable[Run], kind: str, name: str, lr: float) -> list[Run]:
    return [r for r in runs if (r.kind, r.optimizer, r.lr) == (kind, name, lr)]


def best_rate(runs: list[Run], kind: str, name: str) -> float:
    """The learning rate whose median excess risk on the test rows is the smallest."""
    rates = sorted({run.lr for run in runs})
    return min(rates, key=lambda lr: over_seeds(of(runs, kind, name, lr), "test"))


def tables(head: dict[str, Any], runs: list[Run]) -> str:
    """The measured part of docs/optimizers.md."""
    kinds, names, rates = (
        list(dict.fromkeys(getattr(run, field) for run in runs))
        for field in ("kind", "optimizer", "lr")
    )
    steps, seeds = max(run.steps[-1] for run in runs if run.steps), len({run.seed for run in runs})
    lines = [
        f"`{head['command']}`, {head['machine']}, torch {head['torch']}. {steps:,} steps with a "
        f"constant schedule, `{' '.join(head['keys'])}`, all else by default. Excess risk on the "
        f"test rows: the median of {seeds} seeds, the smallest of a row in bold, and the largest.",
        "",
        "| data | optimizer | " + " | ".join(f"lr {lr:g}" for lr in rates) + " |",
        "|---|---|" + "---:|" * len(rates),
    ]
    for kind, name in product(kinds, names):
        best = best_rate(runs, kind, name)
        cells = []
        for lr in rates:
            middle, worst = over_seeds(of(runs, kind, name, lr), "test")
            mark = "**" if lr == best else ""
            cells.append(f"{mark}{middle:.2g}{mark} ({worst:.2g})")
        lines.append(f"| {kind} | {name} | {' | '.join(cells)} |")
    lines += [
        "",
        "AdamZ's learning rate at the last step, the median and the largest:",
        "",
        "| data | " + " | ".join(f"from {lr:g}" for lr in rates) + " |",
        "|---|" + "---:|" * len(rates),
    ]
    for kind in kinds:
        ends = (over_seeds(of(runs, kind, "adamz", lr), "last_lr") for lr in rates)
        cells = [f"{middle:.2g} ({largest:.2g})" for middle, largest in ends]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(runs: list[Run], path: Path) -> None:
    """Excess risk against steps, each optimizer at its best learning rate; a panel a kind."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "optimizers"  # else the ids in the file are random
    from matplotlib import pyplot as plt

    kinds = list(dict.fromkeys(run.kind for run in runs))
    figure, axes = plt.subplots(1, len(kinds), figsize=(3.4 * len(kinds), 3.2), squeeze=False)
    for axis, kind in zip(axes[0], kinds, strict=True):
        for name in dict.fromkeys(run.optimizer for run in runs):
            lr = best_rate(runs, kind, name)
            seeds = [run for run in of(runs, kind, name, lr) if run.steps]
            risks = [statistics.median(v) for v in zip(*(r.validation for r in seeds), strict=True)]
            axis.plot(seeds[0].steps, risks, label=f"{name}, lr {lr:g}", linewidth=1.2)
        axis.set(title=kind, yscale="log", xlabel="steps")
        axis.legend(fontsize=6)
    axes[0][0].set_ylabel("excess risk, validation rows")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draw", action="store_true", help="draw what was measured before")
    if not parser.parse_args().draw:
        write(measure(), RESULTS)
        return
    head, runs = read(RESULTS)
    draw(runs, DOCS / "optimizers.svg")
    page = DOCS / "optimizers.md"
    before, _, rest = page.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n\n{tables(head, runs)}\n\n{END}{after}")


if __name__ == "__main__":
    main()
