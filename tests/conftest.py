"""What many tests share: the real command, and one small published run."""

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# There are as many workers as cores: with more threads, which wait for each other, tests took 1.6
# times as long. NumPy and torch read this when they are loaded; the job's processes choose.
with pytest.MonkeyPatch.context() as patch:
    patch.setenv("OMP_NUM_THREADS", "1")
    import torch  # noqa: F401

from job import durable
from job.forkserver import ForkServer
from job.verify import Reference, Verification, verify_in_fresh_process

ROOT = Path(__file__).parent.parent

# Small enough for seconds, large enough for 32 golden rows and several steps an epoch.
SMALL = ("data.samples=4000", "train.epochs=2", "train.batch_size=512", "device=cpu", "threads=1")

Job = Callable[..., subprocess.CompletedProcess[str]]
Boot = Callable[[str], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--random-models",
        type=int,
        default=8,
        metavar="N",
        help="faithful random models that must raise no false alarm",
    )


# Files that take minutes. A worker takes one after the other, so these come first: else one worker
# would end with them while the others have nothing left.
LONGEST = (
    *("test_resume", "test_distributed", "test_mutants", "test_run", "test_contents"),
    *("test_examples", "test_exit_codes", "test_cron", "test_ranks", "test_tables", "test_exports"),
    *("test_overlap", "test_primer", "test_filesystem", "test_kills", "test_preflight"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {f"{name}.py": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


def environment(**changed: str | None) -> dict[str, str]:
    """This one's without the job's keys, and with `changed`; None takes a variable out."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("JOB")}
    path = os.pathsep.join(filter(None, [str(ROOT), kept.get("PYTHONPATH")]))
    wanted = {**kept, "PYTHONPATH": path, **changed}
    return {key: value for key, value in wanted.items() if value is not None}


def manifest_of(folder: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return manifest


def eventually(seen: Callable[[], bool], seconds: float = 120) -> None:
    """Waits until it is seen."""
    deadline = time.monotonic() + seconds
    while not seen():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def children_of(process: int) -> list[int]:
    return [int(n) for n in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def wait_until_gone(process: int) -> None:
    subprocess.run(["tail", f"--pid={process}", "-f", "/dev/null"], check=True, timeout=60)


def run_job(
    *arguments: str, cwd: Path = ROOT, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`python -m job ...` in a process of its own, with the environment's JOB keys left out."""
    return subprocess.run(
        [sys.executable, "-m", "job", *arguments],
        cwd=cwd,
        env=environment(**(env or {})),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def run_on_a_terminal(command: list[str], **environment: str) -> tuple[int, str]:
    """Exit code and all that the terminal got, what was written over too."""
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    left_out = ("JOB", "MAKE", "MFLAGS", "NO_COLOR")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(left_out)} | {"TERM": "xterm"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=kept | environment, stdin=terminal, stdout=terminal, stderr=terminal
    )
    os.close(terminal)
    seen = b""
    while True:
        try:
            part = os.read(controller, 65536)
        except OSError:  # how Linux tells that the other end is closed
            break
        if not part:
            break
        seen += part
    os.close(controller)
    return process.wait(), seen.decode().replace("\r\n", "\n")


def verify_in_a_worker(folder: Path, reference: Reference, work: Path) -> Verification:
    """`verify_in_fresh_process` with a fork server of its own."""
    with ForkServer() as server:
        return verify_in_fresh_process(server, folder, reference, work)


@pytest.fixture
def boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Boot:
    """Makes every new fork server, and so its workers, run this code before anything else."""

    def write(code: str) -> None:
        folder = tmp_path / "boot"
        folder.mkdir()
        indented = "\n".join(f"    {line}" for line in code.splitlines())
        (folder / "sitecustomize.py").write_text(
            f"import sys\nif 'job.forkserver' in sys.orig_argv:\n{indented}\n"
        )
        monkeypatch.setenv("PYTHONPATH", str(folder))

    return write


# In a fork server: the real exporter, then one bias dropped from every ONNX file that has another
# fingerprint than SPARED.
_WRONG_BIAS = """
import numpy, onnx
from job import export
right = export.write_onnx
def wrong(exported, path, opset, fingerprint):
    right(exported, path, opset, fingerprint)
    if fingerprint == "SPARED":
        return
    model = onnx.load(path)
    for weight in model.graph.initializer:
        if weight.name == "network.0.bias":
            zeros = numpy.zeros(list(weight.dims), numpy.float32)
            weight.CopyFrom(onnx.numpy_helper.from_array(zeros, weight.name))
    onnx.save(model, path)
export.write_onnx = wrong
"""


def wrong_bias(spared: str = "nothing") -> str:
    """For `boot`: every ONNX file is wrong, but those of the fingerprint `spared`."""
    return _WRONG_BIAS.replace("SPARED", spared)


@pytest.fixture
def on_disk(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was fsynced and renamed so far, in its order, by name."""
    done: list[str] = []
    fsync, rename = durable.fsync, os.rename

    def synced(path: Path) -> None:
        fsync(path)
        done.append(path.name)

    def renamed(source: Path, target: Path) -> None:
        rename(source, target)
        done.append(f"{source.name} -> {target.name}")

    monkeypatch.setattr(durable, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    return done


@pytest.fixture
def job() -> Job:
    return run_job


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """An output folder with one published run, to be read only, and what stderr got."""
    folder = tmp_path_factory.mktemp("shared") / "artifacts"
    done = run_job("train", *SMALL, "--output", str(folder), "--run-id", "small")
    assert done.returncode == 0, done.stderr
    return folder, done.stderr


@pytest.fixture(scope="session")
def output(small: tuple[Path, str]) -> Path:
    return small[0]


@pytest.fixture(scope="session")
def published(output: Path) -> Path:
    return output / "runs" / "small"
