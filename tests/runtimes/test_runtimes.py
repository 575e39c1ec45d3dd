"""The ONNX file is any runtime's: OpenVINO, OpenCV and onnx's own evaluator answer as the model."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from job.config import Task
from job.verify.oracle import ACTIVATIONS
from tests.verify.models import sample

Rows = dict[str, NDArray[np.float32]]
BATCHES = (1, 3, 64)


def installed_runtime(name: str) -> Callable[[Path, Rows], Rows]:
    """In a process of its own: each brings its own threads and its own protobuf."""

    def run(model: Path, x: Rows) -> Rows:
        given, taken = model.parent / "x.npz", model.parent / "y.npz"
        np.savez(given, **x)  # type: ignore[arg-type]
        script = Path(__file__).with_name("answers.py")
        command = [sys.executable, *map(str, (script, name, model, given, taken))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return dict(np.load(taken))

    return run


def evaluator(model: Path, x: Rows) -> Rows:
    session = ReferenceEvaluator(onnx.load(model))
    return {name: np.asarray(session.run(None, {"input": x[name]})[0]) for name in x}  # type: ignore[index]


RUNTIMES = {
    "openvino": installed_runtime("openvino"),
    "opencv": installed_runtime("opencv"),
    "onnx.reference": evaluator,
}


@pytest.mark.parametrize("task", get_args(Task))
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_every_runtime_answers_as_the_model(
    runtime: str, activation: str, task: Task, tmp_path: Path
) -> None:
    outputs = 3 if task == "classification" else 2
    model = sample(5, (30, 20), activation, outputs=outputs, x_mean=4, x_std=3, task=task)
    model.export(tmp_path)
    x = {f"batch {n}": np.resize(model.x, (n, 10)) for n in BATCHES}
    answers = RUNTIMES[runtime](tmp_path / "model.onnx", x)
    for name, rows in x.items():
        wanted = model.answer(rows)
        assert answers[name].shape == wanted.shape
        np.testing.assert_allclose(answers[name], wanted, rtol=1e-5, atol=1e-5)
