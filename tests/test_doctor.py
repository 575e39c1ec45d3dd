"""doctor says what there is, and ends as train would."""

from pathlib import Path

import pytest
import torch

from job.errors import ExitCode

from .conftest import Job


def test_it_says_what_this_machine_offers(job: Job, tmp_path: Path) -> None:
    done = job("doctor", "device=cpu", "--output", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    found = dict(line.split(":", 1) for line in done.stdout.splitlines())
    for what in ("python", "torch", "onnxruntime", "user", "cpu limit", "memory limit"):
        assert found[what].strip()
    assert found["device"].strip().startswith("cpu (")
    assert "is writable" in found["output"]
    assert "GiB free" in found["temporary files"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA works here")
def test_it_ends_as_train_would_and_still_says_the_rest(job: Job, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = job("doctor", "device=cuda", "--output", str(tmp_path / "file"))
    assert done.returncode == ExitCode.UNAVAILABLE
    assert "device:            NOT USABLE: device cuda is not available" in done.stdout
    assert "output:            NOT USABLE: the output folder" in done.stdout


def test_an_output_that_cannot_be_used_is_73(job: Job, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = job("doctor", "device=cpu", "--output", str(tmp_path / "file"))
    assert done.returncode == ExitCode.CANNOT_CREATE


def test_it_publishes_and_leaves_nothing(job: Job, tmp_path: Path) -> None:
    job("doctor", "device=cpu", "--output", str(tmp_path / "out"))
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
