"""The same configuration gives the same bytes wherever, by whomever and under whatever it runs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import ROOT, SMALL, environment
from .test_job import FILES

SAME = FILES - {"report.html", "verification.json"}  # the only ones that speak of the run
STRANGER = 54321
CONFIG = str(ROOT / "job.yaml")
OUTPUT = ("--output", "out")


def published_by(
    folder: Path,
    environment: dict[str, str],
    *,
    user: int | None = None,
    extra: tuple[str, ...] = (),
) -> Path:
    done = subprocess.run(
        [sys.executable, "-m", "job", "train", "--config", CONFIG, *SMALL, *extra, *OUTPUT],
        cwd=folder,
        env=environment,
        user=user,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder / done.stdout.strip()


def assert_same(one: Path, other: Path) -> None:
    for name in SAME:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_from_another_folder_under_another_hash_seed_without_a_home(
    published: Path, tmp_path: Path
) -> None:
    bare = environment(PYTHONHASHSEED="4242", HOME=None, USER=None, LOGNAME=None)
    assert_same(published, published_by(tmp_path, bare))


def test_by_another_user(published: Path) -> None:
    """One without a name, a home or anything of its own but the folder."""
    if os.getuid() != 0:
        pytest.skip("only root can run a command as another user")
    folder = Path("/var/tmp") / f"job-test-{os.getpid()}"
    folder.mkdir()
    try:
        os.chown(folder, STRANGER, STRANGER)
        if not reachable_by(STRANGER):
            pytest.skip(
                f"user {STRANGER} may not read {ROOT} or {sys.prefix}; the image's test may"
            )
        assert_same(published, published_by(folder, environment(HOME=None), user=STRANGER))
    finally:
        shutil.rmtree(folder)


def reachable_by(user: int) -> bool:
    command = [sys.executable, "-c", "import job, torch"]
    try:
        done = subprocess.run(command, env=environment(), user=user, cwd="/", check=False)
    except PermissionError:
        return False
    return done.returncode == 0


CLASSES = ("data.kind=gaussians", "train.loss=cross_entropy", "model.activation=gelu")


def test_a_model_of_classes_too(tmp_path: Path) -> None:
    one, other = (tmp_path / name for name in ("one", "other"))
    for folder in (one, other):
        folder.mkdir()
    assert_same(
        published_by(one, environment(PYTHONHASHSEED="1"), extra=CLASSES),
        published_by(other, environment(PYTHONHASHSEED="2"), extra=CLASSES),
    )


def test_another_seed_gives_other_bytes(published: Path, tmp_path: Path) -> None:
    """Else nothing would be shown by what is above."""
    other = published_by(tmp_path, environment(), extra=("seed=1",))
    for name in ("model.onnx", "model.safetensors", "golden/input.npy", "metrics.jsonl"):
        assert (published / name).read_bytes() != (other / name).read_bytes(), name
