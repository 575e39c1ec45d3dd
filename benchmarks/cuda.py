"""The training on a GPU: with CUDA graphs, without them, and a plain loop of torch beside it.

    python -m benchmarks.cuda          # a Markdown table, with the device's name

Rows per second of a network 10-width-1 with ReLU, mean squared error, Adam; medians of rounds in
turns. The roofline is the rate of a large matrix product, and a row's operations are counted as in
benchmarks/speed.py.
"""

import statistics
import tempfile
import time
import timeit
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.peers import rows_per_second
from benchmarks.speed import BATCHES, FEATURES, flops
from job.config import load_config
from job.data import load_data
from job.device import choose_device, prepare_torch
from job.model import build_model
from job.ranks import Ranks
from job.train.loop import Trainer

WIDTHS, ROWS, ROUNDS, SECONDS = (100, 512, 2048), 2**20, 3, 1.0
CUDA = torch.device("cuda")


def job(width: int, batch: int, folder: Path, *, graphs: bool) -> Callable[[], int]:
    """An epoch of the job, evaluation included; how many rows it trained on."""
    config = load_config(
        None,
        [
            *(f"data.samples={ROWS * 10 // 8}", f"model.hidden=[{width}]", "device=cuda"),
            *(f"train.batch_size={batch}", "train.epochs=1000000"),
        ],
    )
    prepare_torch(choose_device(config))
    data = load_data(config.data, config.seed_number, 2**40)
    model = build_model(config, data.training.x, data.training.y)
    trainer = Trainer(model, data, config, CUDA, folder, Ranks())
    if not graphs:
        trainer.graphs = None
    elif trainer.graphs is None:
        raise SystemExit("the graphs were not recorded: see the log")

    def epoch() -> int:
        trainer.train_epoch(lambda *_, **__: None, lambda: None)
        return trainer.rows

    return epoch


def eager(width: int, batch: int) -> Callable[[], int]:
    """An epoch of torch as it is written by hand, all on the device; its losses are not read."""
    layers = (torch.nn.Linear(FEATURES, width), torch.nn.ReLU(), torch.nn.Linear(width, 1))
    network = torch.nn.Sequential(*layers).to(CUDA)
    optimizer = torch.optim.Adam(network.parameters(), fused=True)
    x, y = torch.randn(ROWS, FEATURES, device=CUDA), torch.randn(ROWS, 1, device=CUDA)

    def epoch() -> int:
        for rows in torch.split(torch.randperm(ROWS, device=CUDA), batch):
            optimizer.zero_grad()
            loss = torch.nn.functional.mse_loss(network(x[rows]), y[rows])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        torch.cuda.synchronize()
        return ROWS

    return epoch


def roofline() -> float:
    """Operations per second of a matrix product in float32."""
    a, b = (torch.randn(8192, 8192, device=CUDA) for _ in range(2))

    def product() -> None:
        torch.mm(a, b)
        torch.cuda.synchronize()

    product()
    return 2 * 8192**3 / min(timeit.repeat(product, number=1, repeat=10))


def main() -> None:
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}")
    limit = roofline()
    print(f"A matrix product runs at {limit / 1e12:.1f} TFLOP/s. Million rows per second:\n")
    print("| width | batch | graphs | one by one | eager torch | graphs / eager | share |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    for width in WIDTHS:
        for batch in BATCHES:
            with tempfile.TemporaryDirectory() as folder:
                epochs = [
                    job(width, batch, Path(folder) / "a", graphs=True),
                    job(width, batch, Path(folder) / "b", graphs=False),
                    eager(width, batch),
                ]
                rounds = [
                    [rows_per_second(epoch, SECONDS) for epoch in epochs] for _ in range(ROUNDS)
                ]
            graphs, launched, torchs = map(statistics.median, zip(*rounds, strict=True))
            share = graphs * flops(width) / limit
            print(
                f"| {width} | {batch} | {graphs / 1e6:.2f} | {launched / 1e6:.2f} | "
                f"{torchs / 1e6:.2f} | {graphs / torchs:.2f} | {share:.0%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
