"""On a mismatch: the smallest failing input, and the first layer at which the two part."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from job.errors import ExportMismatch
from job.export import write_torchscript
from job.model import MLP
from job.torchscript import trace
from job.verify import Reference, Verification, verify_files
from job.verify.diagnose import Diagnosis
from job.verify.mutants import Mutant, mutants
from tests.conftest import Boot, verify_in_a_worker

from .models import sample
from .test_exports import Wrong
from .test_rules import program


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Reference]:
    folder = tmp_path_factory.mktemp("right")
    return folder, sample(0, (16, 8), "tanh", x_mean=3, y_mean=2, y_std=5).export(folder)


@pytest.fixture(scope="module")
def wrong_ones(right: tuple[Path, Reference]) -> dict[tuple[str, str], Mutant]:
    folder, reference = right
    names = ("model.onnx", "model.torchscript.pt", "model.pt2")
    files = {name: (folder / name).read_bytes() for name in names}
    return {(m.artifact, m.name): m for m in mutants(files, reference)}


def diagnosed(folder: Path, reference: Reference) -> Diagnosis:
    found = verify_files(folder, reference).explained(folder, reference)
    assert found.diagnosis is not None
    return found.diagnosis


@pytest.mark.parametrize(
    ("artifact", "mutant", "layer", "rows"),
    [
        ("model.onnx", "input columns reversed", "input", 1),
        ("model.onnx", "mean of the inputs left out", "input", 1),
        ("model.onnx", "one weight off by 1e-1", "network.0", 1),
        ("model.onnx", "biases dropped", "network.0", 1),
        ("model.onnx", "nearly tanh", "tanh after network.0", 1),
        ("model.onnx", "one last weight off by 1e-2", "network.4", 1),
        ("model.onnx", "not in the target's units", "output", 1),
        ("model.onnx", "answers larger by 1e-4", "output", 1),
        ("model.onnx", "rows in reverse", "output", 2),
        ("model.onnx", "two rows for all", "output", 4),
        ("model.onnx", "large batches cut off", "output", 64),
        ("model.onnx", "a number for NaN", "output", 1),
        ("model.torchscript.pt", "input columns reversed", "input", 1),
        ("model.torchscript.pt", "another activation", "tanh after network.0", 1),
        ("model.torchscript.pt", "biases dropped", "network.0", 1),
        ("model.torchscript.pt", "the traced rows alone", "output", 4),
        ("model.pt2", "another activation", "tanh after network.0", 1),
        ("model.pt2", "mean added", "input", 1),
    ],
)
def test_the_layer_and_the_rows_that_show_it(
    artifact: str,
    mutant: str,
    layer: str,
    rows: int,
    right: tuple[Path, Reference],
    wrong_ones: dict[tuple[str, str], Mutant],
    tmp_path: Path,
) -> None:
    folder = shutil.copytree(right[0], tmp_path / "wrong")
    (folder / artifact).write_bytes(wrong_ones[artifact, mutant].content)
    found = diagnosed(folder, right[1])
    assert (found.artifact, found.first_layer, len(found.rows)) == (artifact, layer, rows)
    assert found.input.shape == (rows, 10)
    assert f"parts from the model at {layer}" in str(found)
    earlier = list(found.layers)[: list(found.layers).index(layer)]
    assert all(found.layers[name] is not None for name in earlier)


def test_a_weight_that_no_answer_shows_has_no_failing_input(
    right: tuple[Path, Reference],
    wrong_ones: dict[tuple[str, str], Mutant],
    tmp_path: Path,
) -> None:
    folder = shutil.copytree(right[0], tmp_path / "wrong")
    (folder / "model.onnx").write_bytes(
        wrong_ones["model.onnx", "the last bit of one weight"].content
    )
    found = verify_files(folder, right[1]).explained(folder, right[1])
    assert found.faults
    assert found.diagnosis is None


def test_an_input_that_cannot_be_run_is_found_too(
    right: tuple[Path, Reference], tmp_path: Path
) -> None:
    """Only even batches: one row alone shows it; what is inside cannot be seen."""
    folder = shutil.copytree(right[0], tmp_path / "wrong")
    text = "a = Reshape(x, pairs)  output = Reshape(a, rows)"
    program(text, pairs=[2, -1], rows=[-1, 1])(folder, right[1])
    found = diagnosed(folder, right[1])
    assert (list(found.rows), found.first_layer, found.layers) == ([0], None, {})
    assert "cannot be run" in found.reason


def test_what_only_the_trained_model_answers_wrong_is_said_of_it(
    right: tuple[Path, Reference],
) -> None:
    folder, reference = right
    answers = [np.full_like(e.value, 7, np.float32) for _, e in reference.expected[1:]]
    wrong = Reference(
        reference.weights,
        reference.activation,
        reference.batches,
        reference.golden_input,
        reference.golden_output,
        answers,
    )
    found = diagnosed(folder, wrong)
    assert (found.artifact, found.engine, found.layers) == ("trained model", "torch", {})


def test_it_comes_out_of_the_verifying_process_and_is_written_as_files(
    right: tuple[Path, Reference], tmp_path: Path
) -> None:
    folder = shutil.copytree(right[0], tmp_path / "wrong")

    def forward(m: MLP, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = m.output(m.network(m.input(x.flip(1))))
        return answer

    wrong = Wrong(sample(0, (16, 8), "tanh", x_mean=3, y_mean=2, y_std=5).model, forward)
    write_torchscript(trace(wrong, torch.zeros(2, 10)), folder / "model.torchscript.pt")
    found = verify_in_a_worker(folder, right[1], tmp_path)
    with pytest.raises(ExportMismatch):
        found.require_agreement()
    found.write(tmp_path)
    failing = np.load(tmp_path / "failing_input.npy")
    assert failing.shape == (1, 10)
    assert failing.dtype == np.float32
    said = json.loads((tmp_path / "verification.json").read_text())["diagnosis"]
    assert (said["artifact"], said["first_layer"]) == ("model.torchscript.pt", "input")
    assert said["sentence"] == str(found.diagnosis)


def test_where_all_agree_there_is_nothing_to_explain(
    right: tuple[Path, Reference], tmp_path: Path
) -> None:
    found = verify_files(*right).explained(*right)
    assert (found.diagnosis, found.faults) == (None, [])
    found.write(tmp_path)
    assert not (tmp_path / "failing_input.npy").exists()


def test_a_verifier_that_fails_its_self_check_publishes_nothing(
    right: tuple[Path, Reference], tmp_path: Path, boot: Boot
) -> None:
    """Its comparisons pass everything: the files are right, and yet nothing is proven."""
    boot(
        "import job.verify.files as files\n"
        "from job.verify import Comparison\n"
        "files.compare = lambda a, e, c, got, x, *_: Comparison(\n"
        "    a, e, c.name, len(c.x), compared=len(c.x))"
    )
    found: Verification = verify_in_a_worker(*right, tmp_path)
    assert all(comparison.passed for comparison in found.comparisons)
    rejected, of = found.mutants
    assert rejected < of
    with pytest.raises(ExportMismatch, match=r"failed its self-check: .*survived"):
        found.require_agreement()
