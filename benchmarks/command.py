"""The job's real command, timed."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def timed_run(*keys: str) -> tuple[float, dict[str, Any]]:
    """Seconds of the whole command on the CPU with these keys, and the manifest it published."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "job", "train", *keys, f"--output={folder}", "device=cpu"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=True,
        )
        seconds = time.perf_counter() - start
        return seconds, json.loads((Path(folder) / "latest" / "manifest.json").read_text())
