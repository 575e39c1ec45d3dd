"""What would fail at the end fails before the first epoch."""

import json
import os
from pathlib import Path

import pytest

from job.config import load_config
from job.preflight import preflight

from .conftest import ROOT, SMALL, Boot, Job, run_job, wrong_bias

# More epochs than anybody waits for: what ends such a run was found while it trained.
ENDLESS = (*SMALL, "train.epochs=1000000")


def end_of(output: Path, env: dict[str, str] | None = None) -> dict[str, object]:
    """The last event of a run that would train for ever."""
    done = run_job("train", *ENDLESS, "--output", str(output), "--run-id", "one", env=env)
    assert done.stdout == ""
    assert not list((output / "runs").iterdir())
    last: dict[str, object] = json.loads(done.stderr.splitlines()[-1])
    return last


def test_a_wrong_export_is_81_while_the_model_is_trained(tmp_path: Path, boot: Boot) -> None:
    boot(wrong_bias())
    last = end_of(tmp_path / "out")
    assert last["code"] == 81
    assert "untrained already: the files do not agree" in str(last["message"])
    evidence = tmp_path / "out" / "failed" / "one"
    assert json.loads((evidence / "verification.json").read_text())["passed"] is False
    assert (evidence / "failing_input.npy").exists()
    assert "DIFFERS" in (evidence / "report.html").read_text()
    assert not list((tmp_path / "out" / "work" / "runs").iterdir())


@pytest.mark.parametrize(
    ("module", "content"), [("onnxscript", "raise ImportError('broken')"), ("onnxruntime", "1 / 0")]
)
def test_a_broken_library_is_found_while_the_model_is_trained(
    module: str, content: str, tmp_path: Path
) -> None:
    (tmp_path / f"{module}.py").write_text(content)
    env = {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    assert end_of(tmp_path / "out", env)["code"] in (70, 81)


CLASSES = ("data.kind=gaussians", "train.loss=cross_entropy")


@pytest.mark.parametrize(
    "keys",
    [
        # The warmup is of the training's own steps.
        ("data.kind=noise", "data.noise=0.0", "model.hidden=[]", "train.schedule.warmup=100"),
        (*CLASSES, "model.hidden=[8, 4]", "model.activation=gelu"),
        ("data.kind=noise", "data.features=1", "data.samples=100000000000", "data.test=1e-6"),
    ],
)
def test_every_faithful_model_passes(keys: tuple[str, ...], tmp_path: Path) -> None:
    """However many rows are asked for: it makes a few of its own."""
    preflight(load_config(None, list(keys)), tmp_path).require_agreement()


def test_check_does_it_alone_and_leaves_open_what_each_run_draws(job: Job, tmp_path: Path) -> None:
    keys = ("seed=run", "data.samples=5000", f"output.dir={tmp_path / 'out'}")
    done = job("check", "--preflight", *keys)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("seed: run\n")
    assert "samples: 5000" in done.stdout
    assert "comparisons of the untrained model agree" in done.stderr
    assert not (tmp_path / "out").exists()
