"""Is the rule for CPU threads near the best? Training rows per second with 1 and 2 threads.

    python -m benchmarks.threads             # prints the table; a container's quota counts
    python -m benchmarks.threads --cpus 1    # on so many CPUs
    python -m benchmarks.threads --busy 1    # beside so many processes that compute without end

Each measurement is a process of its own; numbers of threads take turns in every round, so that what
else the machine does strikes both alike. `rule` is what job/device.py chooses; `of the best` is its
median speed over that of the fastest number of threads.
"""

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.speed import BATCHES, ROWS, job_speed
from job.config import load_config
from job.device import choose_threads, settle_threads

THREADS = (1, 2)


def chosen(width: int) -> int:
    """The rule's number of threads here."""
    return choose_threads(load_config(None, [f"model.hidden=[{width}]"]))[0]


def speed(threads: int, width: int, batch: int, seconds: float) -> float:
    """Rows per second of a process with so many threads."""
    arguments = [str(value) for value in (width, batch, seconds, threads)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.threads", "--one", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
    )
    return float(done.stdout.splitlines()[-1])


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """So many processes that compute beside what is measured."""
    others = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)
    ]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", nargs=4, metavar=("WIDTH", "BATCH", "SECONDS", "THREADS"))
    parser.add_argument("--cpus", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--busy", type=int, default=0, metavar="PROCESSES")
    parser.add_argument("--widths", nargs="+", type=int, default=list(ROWS))
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0)
    options = parser.parse_args()
    if options.one:
        width, batch, seconds, threads = options.one
        rows = ROWS.get(int(width), 131_072)
        print(job_speed(int(width), rows, float(seconds), int(batch), f"threads={threads}"))
        return
    settle_threads()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cpus])
    print("| width | batch | 1 thread | 2 threads | rule | of the best |")
    print("|---:|---:|---:|---:|---:|---:|")
    for width in options.widths:
        rule = chosen(width)
        for batch in options.batches:
            found: dict[int, list[float]] = {threads: [] for threads in sorted({*THREADS, rule})}
            with busy(options.busy):
                for _ in range(options.rounds):
                    for threads in found:
                        found[threads].append(speed(threads, width, batch, options.seconds))
            middle = {threads: statistics.median(speeds) for threads, speeds in found.items()}
            one, two = (middle[threads] / 1e6 for threads in THREADS)
            share = middle[rule] / max(middle.values())
            print(
                f"| {width} | {batch} | {one:.2f} | {two:.2f} | {rule} | {share:.0%} |", flush=True
            )


if __name__ == "__main__":
    main()
