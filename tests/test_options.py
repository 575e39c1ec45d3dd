"""All the training's options at once, through the real command, with three outputs."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest

from .conftest import manifest_of, run_job
from .test_resume import KEYS, assert_as_if_never_cut_off, disturbed

OPTIONS = (
    *("data.kind=linear", "data.outputs=3", "model={hidden: [16, 8], activation: gelu}"),
    *("model.dropout=0.1", "train.loss=huber", "train.huber_delta=0.5", "train.grad_clip=1.0"),
    *("train.schedule={name: linear, warmup: 0.2}", "train.precision=bfloat16"),
    *("train.optimizer={name: sgd, lr: 0.5, momentum: 0.9, nesterov: true}", "train.epochs=8"),
    *("train.early_stopping={patience: 1, min_delta: 0.02}",),
    *("quality.metrics={loss: {max: 1.0}, mae: {max: 2.0}, r2: {min: 0.5}}",),
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing disturbs, to be read only."""
    output = tmp_path_factory.mktemp("options") / "out"
    done = run_job("train", *KEYS, *OPTIONS, "--output", str(output))
    assert done.returncode == 0, done.stderr
    return output / "latest"


def test_the_manifest_and_the_report_name_every_output(whole: Path) -> None:
    manifest = manifest_of(whole)
    (output,) = manifest["signature"]["outputs"]
    assert (output["shape"], output["targets"]) == (["batch", 3], ["y0", "y1", "y2"])
    floor = manifest["data"]["floor"]
    assert floor == {"mse": 1.0, "mae": pytest.approx(0.7979, abs=1e-4)}
    test = manifest["metrics"]["test"]
    assert test.keys() == {"loss", "mse", "mae", "r2", "excess_risk"}
    assert test["mae"] > 0.75
    training = manifest["training"]
    assert training["best_epoch"] < training["epochs"] < 8
    lines = (whole / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == training["epochs"]
    best = json.loads(lines[training["best_epoch"] - 1])
    assert manifest["metrics"]["validation"] == best["validation"]
    assert "MLP 10-16-8-3, gelu, sgd" in (whole / "report.html").read_text()


def test_it_verifies_and_predicts(whole: Path, tmp_path: Path) -> None:
    done = run_job("verify", str(whole))
    assert done.returncode == 0, done.stderr
    rows, answers = tmp_path / "x.npy", tmp_path / "y.npy"
    np.save(rows, np.load(whole / "golden" / "input.npy"))
    done = run_job("predict", str(whole), "--input", str(rows), "--output", str(answers))
    assert done.returncode == 0, done.stderr
    wanted = np.load(whole / "golden" / "output.npy")
    assert wanted.shape[1] == 3
    np.testing.assert_allclose(np.load(answers), wanted, rtol=1e-5, atol=1e-5)


def test_killed_in_mid_epoch_it_ends_with_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    options = (*OPTIONS, "--output", str(tmp_path))
    process = disturbed("SIGKILL", "job.train.step:training_step", 17, *options)
    said = process.communicate()[1]
    assert process.returncode == -signal.SIGKILL, said
    done = run_job("train", *KEYS, *options)
    assert done.returncode == 0, done.stderr
    assert_as_if_never_cut_off(tmp_path / "latest", whole, 1)
