"""Peak resident memory of the job by rows and by batch size.

    python -m benchmarks.memory

Two epochs of the default network on generated rows. What is told is the largest process of the run,
which is the job's own, as the kernel counts it, and the whole run's wall time.
"""

import argparse
import resource
import subprocess
import sys

from benchmarks.command import timed_run
from benchmarks.speed import BATCHES

ROWS = (10**5, 10**6, 10**7, 3 * 10**7)


def run(rows: int, batch: int) -> None:
    """Runs the job in this process's only child; prints a line of the table."""
    keys = (f"data.samples={rows}", "train.epochs=2", f"train.batch_size={batch}")
    seconds, _ = timed_run(*keys)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20  # of KiB
    print(f"| {rows:,} | {batch:,} | {peak:.2f} | {seconds:.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", nargs=2, type=int, metavar=("ROWS", "BATCH"))
    options = parser.parse_args()
    if options.one:
        run(*options.one)
        return
    print("| rows | batch | peak, GiB | seconds |\n|---:|---:|---:|---:|", flush=True)
    middle = 10**6
    cases = [(rows, 256) for rows in ROWS] + [(middle, batch) for batch in (*BATCHES[1:], middle)]
    for rows, batch in cases:
        one = [sys.executable, "-m", "benchmarks.memory", "--one", str(rows), str(batch)]
        subprocess.run(one, check=True)


if __name__ == "__main__":
    main()
