"""Makes a virtual environment from the hash-pinned locks: `python3 requirements/install.py .venv`.

torch's CUDA build where an NVIDIA driver is present, its CPU build elsewhere. The CPU build is
taken from PyTorch's own index; where that cannot be reached, from what pip finds by itself; and
where no CPU build is found, the CUDA build is taken, which runs on the CPU as well.

`--runtime` leaves out what only tests, lint and types need; `--variant cpu|cuda` decides itself.

Two at once do not meet: the second waits, and finds what it would make. `.ready` in the folder says
what that was made of; it is written last, and what is complete and of the same is left as it is.
"""

import argparse
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


@contextmanager
def alone() -> Iterator[None]:
    """Waits for any other setup by these locks, then keeps others waiting."""
    folder = os.open(HERE, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another setup is under way; waiting for its end")
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def locks_of(variant: str, *, runtime: bool) -> list[Path]:
    names = [variant] if runtime else [variant, "dev"]
    return [HERE / f"{name}.txt" for name in names]


def description(variant: str, *, runtime: bool) -> str:
    """What an environment is made of: of the same is as good."""
    files = [Path(__file__), *locks_of(variant, runtime=runtime)]
    digests = (f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}" for file in files)
    return "\n".join([f"Python {sys.version}", f"torch's {variant} build", *digests, ""])


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
    wanted = description(variant, runtime=options.runtime)
    ready = options.folder / ".ready"
    with alone():
        if not (ready.is_file() and ready.read_text() == wanted):
            ready.unlink(missing_ok=True)
            make(options.folder, variant, runtime=options.runtime, or_cuda=options.variant is None)
        ready.write_text(wanted)


def make(folder: Path, variant: str, *, runtime: bool, or_cuda: bool) -> None:
    """Makes `folder` anew; `or_cuda` allows the CUDA build where there is no CPU build."""
    say(f"making {folder} with Python {sys.version.split()[0]}, torch's {variant} build")
    venv.create(folder, clear=True, with_pip=True, symlinks=True)
    python = str(folder / "bin" / "python")

    def pip(*arguments: str, check: bool = True) -> bool:
        command = [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
        return subprocess.run([*command, *arguments], check=check).returncode == 0

    if variant == "cpu" and not install_cpu_torch(pip):
        if not or_cuda:
            sys.exit("setup: no CPU build of torch is to be had for this Python and machine")
        say("no CPU build of torch is to be had; taking the CUDA build, several GB")
        variant = "cuda"
    # The locks are whole: nothing is left to resolve. pip 23 would ask for the newest release of
    # an extra's package, and fail on its hash the day that release is newer than the lock's.
    locks = locks_of(variant, runtime=runtime)
    wanted = [argument for lock in locks for argument in ("-r", str(lock))]
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
