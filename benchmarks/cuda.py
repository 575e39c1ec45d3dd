"""The training on a GPU: with CUDA graphs, without them, a plain loop of torch and JAX beside it.

    python -m benchmarks.cuda          # a Markdown table, with the device's name

Rows per second of a network 10-width-1 with ReLU, or with two such hidden layers, mean squared
error, Adam; medians of rounds in turns. JAX, where it is installed with CUDA, computes in float32
too and not in TF32. The share is of what a large matrix product and a large copy would allow, as
`limit` counts a row's operations and bytes.
"""

import os

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")

import importlib.util
import math
import statistics
import tempfile
import time
import timeit
from collections.abc import Callable
from functools import cache, partial
from itertools import pairwise
from pathlib import Path

import torch

from benchmarks import peers
from benchmarks.peers import rows_per_second
from benchmarks.speed import BATCHES, FEATURES
from job.config import load_config
from job.data import Dataset, load_data
from job.device import choose_device, prepare_torch
from job.model import build_model
from job.ranks import Ranks
from job.train.loop import Trainer

HIDDEN = ([100], [512], [2048], [2048, 2048])
ROUNDS, SECONDS = 3, 0.3
CUDA = torch.device("cuda")


def rows_for(batch: int) -> int:
    """So many that an epoch is neither too long for one by one nor too short for a graph."""
    return 2**18 if batch < 8192 else 2**21


@cache
def table(n: int) -> Dataset:
    """So many rows for the training, and some more for the rest."""
    return load_data(load_config(None, [f"data.samples={n * 10 // 8}"]).data, 0, 2**40)


def job(hidden: list[int], batch: int, folder: Path, *, graphs: bool) -> Callable[[], float]:
    """The job's rows per second, as the manifest would say them."""
    keys = [f"model.hidden={hidden}", f"train.batch_size={batch}", "train.epochs=1000000"]
    config, data = load_config(None, ["device=cuda", *keys]), table(rows_for(batch))
    prepare_torch(choose_device(config))
    model = build_model(config, data.training.x, data.training.y)
    trainer = Trainer(model, data, config, CUDA, folder, Ranks())
    if not graphs:
        trainer.graphs = None
    elif trainer.graphs is None:
        raise SystemExit("the graphs were not recorded: see the log")

    def rate() -> float:
        trainer.training.rows, trainer.training.seconds = 0, 0.0
        while trainer.training.seconds < SECONDS:
            trainer.train_epoch(lambda *_, **__: None, lambda: None)
        return trainer.training.samples_per_second

    rate()
    return rate


def eager(hidden: list[int], batch: int) -> Callable[[], int]:
    """An epoch of torch as it is written by hand, all on the device; its losses are not read."""
    layers: list[torch.nn.Module] = []
    for inputs, width in pairwise([FEATURES, *hidden]):
        layers += [torch.nn.Linear(inputs, width), torch.nn.ReLU()]
    network = torch.nn.Sequential(*layers, torch.nn.Linear(hidden[-1], 1)).to(CUDA)
    optimizer = torch.optim.Adam(network.parameters(), fused=True)
    n = rows_for(batch)
    x, y = torch.randn(n, FEATURES, device=CUDA), torch.randn(n, 1, device=CUDA)

    def epoch() -> int:
        torch.set_deterministic_debug_mode("default")
        for rows in torch.split(torch.randperm(n, device=CUDA), batch):
            optimizer.zero_grad()
            loss = torch.nn.functional.mse_loss(network(x[rows]), y[rows])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        torch.cuda.synchronize()
        torch.set_deterministic_debug_mode("error")
        return n

    return epoch


def limits() -> tuple[float, float]:
    """Operations per second of a matrix product in float32, bytes per second of a copy."""
    a, b = (torch.randn(8192, 8192, device=CUDA) for _ in range(2))
    source = torch.randn(2**28, device=CUDA)
    target = torch.empty_like(source)

    def seconds(work: Callable[[], object]) -> float:
        def waited() -> None:
            work()
            torch.cuda.synchronize()

        waited()
        return min(timeit.repeat(waited, number=1, repeat=10))

    product, copy = seconds(lambda: torch.mm(a, b)), seconds(lambda: target.copy_(source))
    return 2 * 8192**3 / product, 2 * 4 * source.numel() / copy


def limit(hidden: list[int], flops: float, copied: float) -> float:
    """Rows per second that neither rate forbids.

    Operations: each layer's products forward, for its weights' gradient and, but for the first,
    for its input's. Bytes: a hidden layer's values are written once and read by the next layer's
    two products, their gradients written once and read by the layer's own.
    """
    sizes = list(pairwise([FEATURES, *hidden, 1]))
    operations = 2 * sum((3 if i else 2) * a * b for i, (a, b) in enumerate(sizes))
    passes = 4 * sum((3 + (3 if i else 2)) * width for i, width in enumerate(hidden))
    return min(flops / operations, copied / passes)


def main() -> None:
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}")
    flops, copied = limits()
    print(
        f"A matrix product runs at {flops / 1e12:.1f} TFLOP/s, a copy at {copied / 1e12:.2f} TB/s. "
        f"Million rows per second, medians of {ROUNDS} rounds:\n"
    )
    columns = ("hidden", "batch", "graphs", "one by one", "eager torch", "JAX")
    ratios = ("graphs / eager", "graphs / JAX", "share of the limit")
    print("| " + " | ".join((*columns, *ratios)) + " |")
    print("|---:" * len((*columns, *ratios)) + "|")
    with_jax = importlib.util.find_spec("jax") is not None
    for hidden in HIDDEN:
        for batch in BATCHES:
            n = rows_for(batch)
            with tempfile.TemporaryDirectory() as folder:
                rates: list[Callable[[], float]] = [
                    job(hidden, batch, Path(folder) / "a", graphs=True),
                    job(hidden, batch, Path(folder) / "b", graphs=False),
                    partial(rows_per_second, eager(hidden, batch), SECONDS),
                ]
                if with_jax and len(hidden) == 1:
                    epoch = peers.jax(hidden[0], n, batch)
                    rates.append(partial(rows_per_second, epoch, SECONDS))
                rounds = [[rate() for rate in rates] for _ in range(ROUNDS)]
            graphs, launched, torchs, *jaxs = map(statistics.median, zip(*rounds, strict=True))
            jax = jaxs[0] if jaxs else math.nan
            share = graphs / limit(hidden, flops, copied)
            millions = (f"{rate / 1e6:.2f}" for rate in (graphs, launched, torchs, jax))
            over = (f"{graphs / torchs:.1f}", f"{graphs / jax:.2f}", f"{share:.0%}")
            cells = ("-".join(map(str, hidden)), str(batch), *millions, *over)
            print("| " + " | ".join(cells).replace("nan", "") + " |", flush=True)


if __name__ == "__main__":
    main()
