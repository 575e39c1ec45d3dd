"""The job's training speed by a stopwatch beside it, and by its own manifest.

    python -m benchmarks.outside

The wall time of 22 epochs less that of 2, each of the real command: what is left is 20 epochs.
There are so many rows that 2 epochs take longer than what else is done beside the first ones.
"""

import statistics

from benchmarks.command import timed_run

SAMPLES = 12_000_000
BATCHES = (1024, 8192)
EPOCHS = (2, 22)
ROUNDS = 3


def run(batch: int, epochs: int) -> tuple[float, float, int]:
    """Seconds of the whole command; rows per second by its manifest; training rows."""
    keys = (f"data.samples={SAMPLES}", f"train.epochs={epochs}", f"train.batch_size={batch}")
    seconds, manifest = timed_run(*keys)
    training = manifest["training"]
    return seconds, training["samples_per_second"], sum(training["rows_by_rank"])


def main() -> None:
    print("| batch | from outside | by the manifest |\n|---:|---:|---:|", flush=True)
    for batch in BATCHES:
        outside, inside = [], []
        for _ in range(ROUNDS):
            (short, _, _), (long, stated, rows) = (run(batch, epochs) for epochs in EPOCHS)
            outside.append((EPOCHS[1] - EPOCHS[0]) * rows / (long - short) / 1e6)
            inside.append(stated / 1e6)
        middle = (statistics.median(rates) for rates in (outside, inside))
        print(f"| {batch} | " + " | ".join(f"{rate:.2f}" for rate in middle) + " |", flush=True)


if __name__ == "__main__":
    main()
