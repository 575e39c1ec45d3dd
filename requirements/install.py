"""Makes a virtual environment from the hash-pinned locks: `python3 requirements/install.py .venv`.

torch's CUDA build where an NVIDIA driver is present, its CPU build elsewhere. The CPU build is
taken from PyTorch's own index; where that cannot be reached, from what pip finds by itself; and
where no CPU build is found, the CUDA build is taken, which runs on the CPU as well.

`--runtime` leaves out what only tests, lint and types need; `--variant cpu|cuda` decides itself.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
SUPPORTED = ((3, 11), (3, 13))


def say(message: str) -> None:
    print(f"setup: {message}", file=sys.stderr, flush=True)


def nvidia_driver_present() -> bool:
    return os.path.exists("/proc/driver/nvidia/version") or shutil.which("nvidia-smi") is not None


def torch_of(lock: Path) -> str:
    """The lines of the lock that pin torch and its hashes."""
    found = re.search(r"^torch==.*(\n {4}--hash.*)+", lock.read_text(), re.MULTILINE)
    assert found is not None
    return found[0] + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--variant", choices=("cpu", "cuda"))
    parser.add_argument("--runtime", action="store_true")
    options = parser.parse_args()

    if not SUPPORTED[0] <= sys.version_info[:2] <= SUPPORTED[1]:
        sys.exit(
            f"setup: Python 3.11, 3.12 or 3.13 is needed and this is {sys.version.split()[0]}; "
            f"name one: make setup PYTHON=python3.12"
        )
    variant = options.variant or ("cuda" if nvidia_driver_present() else "cpu")
    say(f"making {options.folder} with Python {sys.version.split()[0]}, torch's {variant} build")
    venv.create(options.folder, clear=True, with_pip=True, symlinks=True)
    python = str(options.folder / "bin" / "python")

    def pip(*arguments: str, check: bool = True) -> bool:
        command = [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
        return subprocess.run([*command, *arguments], check=check).returncode == 0

    if variant == "cpu" and not install_cpu_torch(pip):
        if options.variant == "cpu":
            sys.exit("setup: no CPU build of torch is to be had for this Python and machine")
        say("no CPU build of torch is to be had; taking the CUDA build, several GB")
        variant = "cuda"
    # The locks are whole: nothing is left to resolve. pip 23 would ask for the newest release of
    # an extra's package, and fail on its hash the day that release is newer than the lock's.
    locks = [variant] if options.runtime else [variant, "dev"]
    wanted = [argument for lock in locks for argument in ("-r", str(HERE / f"{lock}.txt"))]
    pip("--no-deps", "--require-hashes", *wanted)
    subprocess.run([python, "-m", "pip", "check", "--disable-pip-version-check"], check=True)
    say("done")


def install_cpu_torch(pip: Callable[..., bool]) -> bool:
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as pinned:
        pinned.write(torch_of(HERE / "cpu.txt"))
        pinned.flush()
        wanted = ("--no-deps", "--require-hashes", "-r", pinned.name)
        index = ("--extra-index-url", CPU_INDEX, "--retries", "1", "--timeout", "20")
        return pip(*index, *wanted, check=False) or pip(*wanted, check=False)


if __name__ == "__main__":
    main()
