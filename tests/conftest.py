"""What many tests share: the real command, and one small published run."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Small enough for seconds, large enough for 32 golden rows and several steps an epoch.
SMALL = ("data.samples=4000", "train.epochs=2", "train.batch_size=512", "device=cpu", "threads=1")

Job = Callable[..., subprocess.CompletedProcess[str]]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--random-models",
        type=int,
        default=12,
        metavar="N",
        help="faithful random models that must raise no false alarm",
    )


def run_job(
    *arguments: str, cwd: Path = ROOT, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`python -m job ...` in a process of its own, with the environment's JOB keys left out."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("JOB")}
    return subprocess.run(
        [sys.executable, "-m", "job", *arguments],
        cwd=cwd,
        env={**kept, "PYTHONPATH": str(ROOT), **(env or {})},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def job() -> Job:
    return run_job


@pytest.fixture(scope="session")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with one published run, to be read only."""
    folder = tmp_path_factory.mktemp("shared") / "artifacts"
    done = run_job("train", *SMALL, "--output", str(folder), "--run-id", "small")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def published(output: Path) -> Path:
    return output / "runs" / "small"
