"""Classification through the real command: a softmax in the graph, known best metrics."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from job.errors import DataError
from job.verify import verify_published

from .conftest import SMALL, manifest_of, run_job
from .test_reproducible import assert_same
from .verify.folders import rehash

Float32 = np.ndarray[Any, np.dtype[np.float32]]


CLASSES = (
    *(*SMALL, "data.kind=gaussians", "train.loss=cross_entropy", "train.epochs=8"),
    "model.activation=gelu",
)


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published model of two classes, to be read only."""
    output = tmp_path_factory.mktemp("classes") / "artifacts"
    done = run_job("train", *CLASSES, "--output", str(output), env={"PYTHONHASHSEED": "1"})
    assert done.returncode == 0, done.stderr
    return output / "latest"


def test_the_manifest_names_the_classes_and_what_is_best(classes: Path) -> None:
    manifest = manifest_of(classes)
    assert manifest["signature"]["task"] == "classification"
    assert manifest["signature"]["outputs"] == [
        {"name": "output", "dtype": "float32", "shape": ["batch", 2], "classes": [0, 1]}
    ]
    assert manifest["data"]["floor"] == {
        "log_loss": pytest.approx(0.356316, abs=1e-6),
        "accuracy": pytest.approx(0.841344746, abs=1e-9),  # Phi(1), tables
    }
    test = manifest["metrics"]["test"]
    assert test.keys() == {"loss", "log_loss", "accuracy", "excess_risk"}
    assert test["loss"] == pytest.approx(test["log_loss"], rel=1e-6)
    assert 0 <= test["excess_risk"] < 0.05
    assert test["accuracy"] > 0.78
    assert manifest["metrics"]["validation"].keys() == test.keys()


def test_it_answers_with_probabilities_elsewhere(classes: Path) -> None:
    session = onnxruntime.InferenceSession(classes / "model.onnx")
    x = np.load(classes / "golden" / "input.npy")
    answers = session.run(None, {"input": x})[0]
    np.testing.assert_allclose(answers.sum(axis=1), 1, rtol=1e-6)
    assert ((answers >= 0) & (answers <= 1)).all()
    np.testing.assert_allclose(answers, np.load(classes / "golden" / "output.npy"), atol=1e-6)


def test_under_another_hash_seed_the_bytes_are_the_same(classes: Path, tmp_path: Path) -> None:
    done = run_job("train", *CLASSES, "--output", str(tmp_path), env={"PYTHONHASHSEED": "2"})
    assert done.returncode == 0, done.stderr
    assert_same(classes, tmp_path / "latest")


@pytest.mark.parametrize("task", ["regression", "ranking", None, ["classification"]])
def test_a_manifest_that_says_another_task_is_refused(
    task: object, classes: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(classes, tmp_path / "copy")
    rehash(copy, lambda manifest: manifest["signature"].update(task=task))
    with pytest.raises(DataError) as refusal:
        verify_published(copy)
    assert refusal.value.code == 65


def test_the_report_shows_classes(classes: Path) -> None:
    page = (classes / "report.html").read_text()
    for word in ("log_loss", "accuracy", "best reachable", "MLP 10-100-2"):
        assert word in page
