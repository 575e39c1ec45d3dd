"""The whole job on a GPU: same bytes, cut off or not, and the exit codes that only CUDA has."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from .conftest import ROOT, Job, environment, manifest_of
from .test_reproducible import assert_same

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")

# 256 steps an epoch, of which the graphs take the first 8 and then all.
KEYS = ("device=cuda", "data.samples=81920", "train.epochs=4", "train.batch_size=256")


def test_equal_runs_are_equal_bytes_cut_off_or_not(job: Job, tmp_path: Path) -> None:
    one, two, cut = (("train", *KEYS, "--output", str(tmp_path / n)) for n in ("1", "2", "cut"))
    for arguments in (one, two):
        done = job(*arguments)
        assert done.returncode == 0, done.stderr
        assert "steps are replayed as CUDA graphs" in done.stderr
    for action, nth, code in (("SIGTERM", 2, 75), ("SIGKILL", 4, -9), ("SIGTERM", 1, 75)):
        moment = ("job.train.graphs:GraphedSteps.steps", str(nth))
        done = subprocess.run(
            [sys.executable, "-m", "tests.wrapped", action, *moment, *cut],
            cwd=ROOT,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stderr
    done = job(*cut)
    assert done.returncode == 0, done.stderr
    latest = [tmp_path / name / "latest" for name in ("1", "2", "cut")]
    assert_same(latest[0], latest[1])
    assert (latest[0] / "model.onnx").read_bytes() == (latest[2] / "model.onnx").read_bytes()
    assert (latest[0] / "metrics.jsonl").read_bytes() == (latest[2] / "metrics.jsonl").read_bytes()
    assert manifest_of(latest[2])["device"]["name"] == torch.cuda.get_device_name()
    assert manifest_of(latest[2])["training"]["resumed"] == 3


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["train.precision=tf32"], "steps are replayed as CUDA graphs"),
        (["train.precision=bfloat16"], "steps are replayed as CUDA graphs"),
        (["train.loss=huber", "train.grad_clip=0.5"], "steps are replayed as CUDA graphs"),
        (["data.kind=gaussians", "train.loss=cross_entropy"], "steps are replayed as CUDA graphs"),
        (["model.activation=gelu", "model.hidden=[64,32]"], "steps are replayed as CUDA graphs"),
        (["model.dropout=0.1"], "launched one by one, since each step draws its dropout"),
        (["train.optimizer={name: sgd}"], "launched one by one, since train.optimizer is sgd"),
        (["train.optimizer={name: adamx}"], "launched one by one, since train.optimizer is adamx"),
        (
            ["train.optimizer={name: adamz}", "train.schedule.name=constant"],
            "launched one by one, since train.optimizer is adamz",
        ),
    ],
)
def test_what_is_trained_there_is_published(
    keys: list[str], said: str, job: Job, tmp_path: Path
) -> None:
    small = ("device=cuda", "data.samples=20000", "train.epochs=2", "train.batch_size=512")
    done = job("train", *small, *keys, "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert said in done.stderr
    assert job("verify", str(tmp_path / "latest")).returncode == 0


@pytest.mark.parametrize(
    ("keys", "code", "said"),
    [
        (["device=cuda:99"], 69, "there is no CUDA device 99"),
        (["train.optimizer.lr=1e30"], 80, "training diverged at step"),
        (
            ["data.samples=3000000", "train.batch_size=2400000", "model.hidden=[4096,4096,4096]"],
            71,
            "out of memory",
        ),
    ],
)
def test_what_fails_there_has_its_code(
    keys: list[str], code: int, said: str, job: Job, tmp_path: Path
) -> None:
    done = job("train", *KEYS, *keys, "--output", str(tmp_path))
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert not list(tmp_path.glob("runs/*"))
