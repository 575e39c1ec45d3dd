"""The ONNX file is any runtime's: OpenVINO, OpenCV and onnx's own evaluator answer as the model."""

import itertools
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from job.config import Task
from job.verify.oracle import ACTIVATIONS
from tests.verify.models import Sample, sample

Rows = dict[str, NDArray[np.float32]]
BATCHES = (1, 3, 64)
Kind = tuple[str, Task]
KINDS: list[Kind] = list(itertools.product(ACTIVATIONS, get_args(Task)))


def installed_runtime(name: str) -> Callable[[Sequence[Path]], list[Rows]]:
    """In a process of its own: each brings its own threads and its own protobuf."""

    def run(folders: Sequence[Path]) -> list[Rows]:
        script = Path(__file__).with_name("answers.py")
        command = [sys.executable, *map(str, (script, name, *folders))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return [dict(np.load(folder / f"{name}.npz")) for folder in folders]

    return run


def evaluator(folders: Sequence[Path]) -> list[Rows]:
    def run(folder: Path) -> Rows:
        session = ReferenceEvaluator(onnx.load(folder / "model.onnx"))
        x = np.load(folder / "x.npz")
        return {name: np.asarray(session.run(None, {"input": x[name]})[0]) for name in x}  # type: ignore[index]

    return list(map(run, folders))


# The answers to the rows in each folder.
RUNTIMES: dict[str, Callable[[Sequence[Path]], list[Rows]]] = {
    "openvino": installed_runtime("openvino"),
    "opencv": installed_runtime("opencv"),
    "onnx.reference": evaluator,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[Kind, tuple[Path, Sample]]:
    """A model of each kind, and the folder with its files and with rows in x.npz."""
    found = {}
    for activation, task in KINDS:
        folder = tmp_path_factory.mktemp(f"{activation}_{task}")
        outputs = 3 if task == "classification" else 2
        model = sample(5, (30, 20), activation, outputs=outputs, x_mean=4, x_std=3, task=task)
        model.export(folder)
        x = {f"batch {n}": np.resize(model.x, (n, 10)) for n in BATCHES}
        np.savez(folder / "x.npz", **x)  # type: ignore[arg-type]
        found[activation, task] = folder, model
    return found


@pytest.fixture(scope="module")
def answers(models: dict[Kind, tuple[Path, Sample]]) -> Callable[[str], dict[Kind, Rows]]:
    """What a runtime answers for each model; it is started once, which takes it longest."""

    @cache
    def of(runtime: str) -> dict[Kind, Rows]:
        found = RUNTIMES[runtime]([folder for folder, _ in models.values()])
        return dict(zip(models, found, strict=True))

    return of


@pytest.mark.parametrize(("activation", "task"), KINDS)
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_every_runtime_answers_as_the_model(
    runtime: str,
    activation: str,
    task: Task,
    models: dict[Kind, tuple[Path, Sample]],
    answers: Callable[[str], dict[Kind, Rows]],
) -> None:
    folder, model = models[activation, task]
    x, found = np.load(folder / "x.npz"), answers(runtime)[activation, task]
    assert sorted(x) == sorted(f"batch {n}" for n in BATCHES)
    for name, rows in x.items():
        wanted = model.answer(rows)
        assert found[name].shape == wanted.shape
        np.testing.assert_allclose(found[name], wanted, rtol=1e-5, atol=1e-5)
