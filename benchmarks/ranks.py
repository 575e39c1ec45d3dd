"""What a second process brings: training rows per second of the real command under torchrun.

    python -m benchmarks.ranks        # prints the table in docs/distributed.md

One process and two, a thread each, in turn and three times; the medians of what the manifests say.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
# Width, batch size, rows, epochs: ten seconds each, so that the export of the untrained model,
# which runs beside the first of them, matters little.
CASES = (
    (100, 8192, 2_000_000, 40),
    (100, 65_536, 2_000_000, 40),
    (2048, 8192, 200_000, 25),
)
ROUNDS = 3


def speed(processes: int, width: int, batch: int, rows: int, epochs: int) -> float:
    keys = (f"model.hidden=[{width}]", f"train.batch_size={batch}", f"data.samples={rows}")
    with tempfile.TemporaryDirectory() as output:
        subprocess.run(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
                *(f"--nproc-per-node={processes}", "-m", "job", "train", "--quiet", *keys),
                *(f"train.epochs={epochs}", "device=cpu", "threads=1", "--output", output),
            ],
            cwd=ROOT,
            check=True,
            capture_output=True,
        )
        manifest = json.loads(Path(output, "latest", "manifest.json").read_text())
    return float(manifest["training"]["samples_per_second"])


def main() -> None:
    print("| width | batch | 1 process | 2 processes | times | efficiency |")
    print("|---:|---:|---:|---:|---:|---:|")
    for case in CASES:
        found: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(ROUNDS):
            for processes in found:
                found[processes].append(speed(processes, *case))
        one, two = (statistics.median(speeds) / 1e6 for speeds in found.values())
        width, batch, *_ = case
        times = two / one
        print(f"| {width} | {batch} | {one:.2f} | {two:.2f} | {times:.2f} | {times / 2:.0%} |")


if __name__ == "__main__":
    main()
