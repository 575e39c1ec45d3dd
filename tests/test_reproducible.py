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
COMMAND = (sys.executable, "-m", "job", "train", "--config", str(ROOT / "job.yaml"), *SMALL)


def assert_same(one: Path, other: Path) -> None:
    for name in SAME:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_in_a_bare_environment_under_another_hash_seed(published: Path, tmp_path: Path) -> None:
    """No home, name or reader, LANG=C, and a folder where not even root can write."""
    odd = {"LANG": "C", "PYTHONHASHSEED": "4242"}
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*COMMAND, "--output", str(tmp_path)],
        cwd="/proc",
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **odd},
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)
    assert done.returncode == 0, done.stderr
    assert_same(published, tmp_path / "latest")


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
        done = subprocess.run(
            [*COMMAND, "--output", "out"],
            cwd=folder,
            env=environment(HOME=None),
            user=STRANGER,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert_same(published, folder / "out" / "latest")
    finally:
        shutil.rmtree(folder)


def reachable_by(user: int) -> bool:
    command = [sys.executable, "-c", "import job, torch"]
    try:
        done = subprocess.run(command, env=environment(), user=user, cwd="/", check=False)
    except PermissionError:
        return False
    return done.returncode == 0
