"""The job's training rate as a clock on the wall sees it, beside the one it tells of itself.

    python -m benchmarks.outside

For each batch size the default job, with more rows, runs for 2 epochs and for 22, in turns; the 20
epochs between them are the difference of the wall times. That counts what the job's own rate, of
steps, leaves out: evaluations, checkpoints and log lines.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.speed import BATCHES, ROWS

FEW, MANY = 2, 22
SAMPLES = ROWS[100] * 10 // 8


def run(epochs: int, batch: int) -> tuple[float, float]:
    """Seconds of the whole command, and the rows per second that the manifest tells."""
    with tempfile.TemporaryDirectory() as folder:
        keys = (f"data.samples={SAMPLES}", f"train.epochs={epochs}", f"train.batch_size={batch}")
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "job", "train", *keys, f"--output={folder}", "device=cpu"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            check=True,
        )
        seconds = time.perf_counter() - start
        manifest = json.loads((Path(done.stdout.strip()) / "manifest.json").read_text())
    return seconds, manifest["training"]["samples_per_second"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print("| batch | told, M rows/s | from outside | ratio |")
    print("|---:|---:|---:|---:|")
    for batch in options.batches:
        told, seen = [], []
        for _ in range(options.rounds):
            few, _ = run(FEW, batch)
            many, rate = run(MANY, batch)
            told.append(rate / 1e6)
            seen.append((MANY - FEW) * ROWS[100] / (many - few) / 1e6)
        inside, outside = statistics.median(told), statistics.median(seen)
        print(f"| {batch} | {inside:.2f} | {outside:.2f} | {outside / inside:.2f} |", flush=True)


if __name__ == "__main__":
    main()
