"""The verifier: no wrong export passes, no faithful one is refused, and doubt is never a pass.

Shapes: N rows, F features, O outputs.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from job.config import load_config
from job.errors import ExportMismatch, JobError
from job.export import Exporter, write_goldens
from job.manifest import read_manifest
from job.model import MLP, build_model
from job.train import predict
from job.verify import (
    Reference,
    verify_files,
    verify_published,
    verify_staged,
)
from job.verify.battery import Case, cases
from job.verify.compare import compare
from job.verify.engines import load_onnx
from job.verify.oracle import ACTIVATIONS, Answer, Oracle
from job.verify.published import reference_of

from .conftest import Boot, verify_in_a_worker
from .verify.folders import rehash
from .verify.models import Sample, sample

CPU = torch.device("cpu")
Array = NDArray[Any]


def random_model(
    seed: int, hidden: list[int], activation: str, *, features: int = 10, scale: float = 1.0
) -> tuple[MLP, Array]:
    """A model with weights as large as training makes them, and rows that fit it."""
    draw = np.random.default_rng(seed)
    x = (draw.normal(3, 2, (300, features)) * scale).astype(np.float32)
    y = draw.normal(-1, 5, (300, 1)).astype(np.float32)
    config = load_config(
        None, [f"model.hidden={hidden}", f"model.activation={activation}", f"seed={seed}"]
    )
    model = build_model(config, x, y).eval()
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.mul_(float(draw.uniform(0.5, 3)))
    return model, x


# The oracle.


def test_the_oracle_and_its_bound_by_hand() -> None:
    """x = 3, mean 1, std 2: h = 1. z = 4 h - 1 = 3. y = 5 z + 2 = 17."""
    numbers = {
        "input.mean": [1.0],
        "input.std": [2.0],
        "network.0.weight": [[4.0]],
        "network.0.bias": [-1.0],
        "output.mean": [2.0],
        "output.std": [5.0],
    }
    weights = {name: np.array(value, np.float32) for name, value in numbers.items()}
    answer = Oracle(weights, "relu")(np.array([[3.0]], np.float32))
    assert answer.value[0, 0] == 17
    u = 2.0**-24
    e_h = 3 * u * 1
    e_z = 4 * e_h + 2 * u * (4 * 1 + 1)
    e_y = 5 * e_z + 3 * u * (5 * 3 + 2)
    assert answer.bound[0, 0] == pytest.approx(e_y, rel=1e-6)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("seed", range(6))
def test_the_bound_bounds_and_is_not_vacuous(activation: str, seed: int) -> None:
    hidden = [[], [1], [1024], [64, 64], [5] * 6, [300, 2, 300]][seed]
    model, x = random_model(seed, hidden, activation, scale=10.0 ** (seed - 3))
    answer = Oracle(model.weights(), activation)(x)
    error = np.abs(predict(model, x, CPU) - answer.value)
    assert (error <= answer.bound).all()
    scale = np.abs(answer.value).max()
    assert answer.bound.max() < 0.01 * scale


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_in_every_engine_stay_within_their_own_error(
    activation: str, tmp_path: Path
) -> None:
    """One unit with weight 1: what is seen is the activation itself, over its whole range."""
    z = np.concatenate([np.linspace(-30, 30, 20_001), np.geomspace(1e-30, 1e30, 2001)])
    x = np.concatenate([z, -z]).astype(np.float32)[:, None]
    model = MLP(1, (1,), 1, activation).eval()
    for layer in (model.network[0], model.network[2]):
        nn.init.ones_(layer.weight)  # type: ignore[arg-type]
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    config = load_config(None, [f"model.activation={activation}", "data.kind=noise"])
    Exporter(model, config).write(model.weights(), tmp_path, "f" * 64)
    reference = Reference.of_model(
        model.weights(), activation, (len(x),), x, lambda rows: predict(model, rows, CPU)
    )
    write_goldens(tmp_path, reference.golden_input, reference.golden_output)
    verify_files(tmp_path, reference).require_agreement()


# Failing closed: one comparison.

EXPECTED = Answer(
    np.array([[1.0], [np.nan], [np.inf], [2.0]]),
    np.array([[0.1], [0], [0], [0.1]]),
    np.array([False] * 4),
    np.full((4, 1), 0.1),
)
RIGHT = np.array([[1.05], [np.nan], [np.inf], [1.95]], np.float32)
CASE = Case("rows", np.zeros((4, 1), np.float32))


def test_an_answer_within_the_bound_passes_and_is_measured() -> None:
    got = compare("file", "engine", CASE, RIGHT, EXPECTED)
    assert got.passed
    assert got.compared == 4
    assert got.max_error == pytest.approx(0.05, rel=1e-5)
    assert got.bound_used == pytest.approx(0.5, rel=1e-5)


def changed(row: int, value: float) -> Array:
    wrong = RIGHT.copy()
    wrong[row, 0] = value
    return wrong


@pytest.mark.parametrize(
    ("got", "reason"),
    [
        (changed(0, np.nan), "outside the bound, the first in row 0"),
        (changed(0, np.inf), "outside the bound"),
        (changed(3, 2.2), "the first in row 3: 2.2"),
        (changed(1, 0.0), "row 1 is 0, not nan"),
        (changed(2, -np.inf), "row 2 is -inf, not inf"),
        (changed(2, np.nan), "row 2 is nan, not inf"),
        (RIGHT[:, 0], r"has shape (4,), not (4, 1)"),
        (RIGHT[:1], r"has shape (1, 1)"),
        (RIGHT.astype(np.float64), "has type float64"),
        ([RIGHT, RIGHT], "is a list, not one tensor"),
        (None, "is a NoneType"),
        (RIGHT[:0], "has shape (0, 1)"),
    ],
)
def test_anything_else_fails_with_its_reason(got: object, reason: str) -> None:
    found = compare("file", "engine", CASE, got, EXPECTED)
    assert not found.passed
    assert found.as_json()["verdict"] == "failed"
    assert reason in str(found.fault)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e38, 0.0])
def test_a_vague_row_takes_any_infinity_or_nan_but_no_number(value: float) -> None:
    expected = replace(EXPECTED, vague=np.array([False, False, True, False]))
    found = compare("file", "engine", CASE, changed(2, value), expected)
    assert found.passed == (not np.isfinite(value))


def test_where_float32_may_overflow_nothing_is_demanded_and_nothing_counted() -> None:
    expected = Answer(np.array([[1e39]]), np.array([[np.inf]]), np.array([False]), np.ones((1, 1)))
    case = Case("scale", np.zeros((1, 1), np.float32))
    found = compare("file", "engine", case, np.array([[np.inf]], np.float32), expected)
    assert found.passed
    assert found.compared == 0
    ordinary = replace(case, complete=True)
    found = compare("file", "engine", ordinary, np.array([[np.inf]], np.float32), expected)
    assert "overflow" in str(found.fault)


def test_the_battery_holds_every_class_of_input() -> None:
    golden = np.random.default_rng(0).random((40, 3)).astype(np.float32)
    found = {case.name: case.x for case in cases(golden, (1, 100))}
    assert found["held-out rows, batch 1"].shape == (1, 3)
    assert found["held-out rows, batch 100"].shape == (100, 3)
    assert found["empty batch"].shape == (0, 3)
    assert not found["zeros"].any()
    nan = found["NaN in one column"]
    assert np.isnan(nan).sum(axis=1).tolist() == [1, 1, 1, 0, 0, 0]
    assert np.isnan(nan).any(axis=0).all()
    assert np.isposinf(found["+Inf in one column"]).sum() == 3
    assert found["scale 1e+30"].max() > 1e28


# Wrong exports.


def small_sample(seed: int) -> Sample:
    return sample(seed, (16, 8), "relu", x_mean=3, x_std=2, y_mean=-1, y_std=5)


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Reference]:
    """A faithful export of a small model, and its reference."""
    folder = tmp_path_factory.mktemp("right")
    reference = small_sample(1).export(folder)
    verify_files(folder, reference).require_agreement()
    return folder, reference


def edit_weights(edit: Callable[[str, Array], Array]) -> Callable[[onnx.ModelProto], None]:
    def mutate(proto: onnx.ModelProto) -> None:
        for initializer in proto.graph.initializer:
            values = onnx.numpy_helper.to_array(initializer)
            new = edit(initializer.name, values.copy()).astype(values.dtype)
            initializer.CopyFrom(onnx.numpy_helper.from_array(new, initializer.name))

    return mutate


def one_weight(name: str, values: Array) -> Array:
    if name == "network.2.weight":
        values[0, 0] *= 1 + 1e-4
    return values


def no_bias(name: str, values: Array) -> Array:
    return values * 0 if name == "network.0.bias" else values


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of another model of the same shape."""
    folder = tmp_path_factory.mktemp("other")
    small_sample(2).export(folder)
    return folder


@pytest.mark.parametrize(
    "name", ["model.onnx", "model.torchscript.pt", "model.pt2", "model.safetensors"]
)
def test_a_file_of_another_model_is_refused(
    name: str, right: tuple[Path, Reference], other: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(right[0], tmp_path / "wrong")
    shutil.copy(other / name, folder / name)
    assert any(fault.startswith(name) for fault in verify_files(folder, right[1]).faults)


# The two that must be there are in tests/verify/test_fails_closed.py.
@pytest.mark.parametrize("name", ["model.pt2", "model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not a model"])
def test_a_file_that_cannot_be_loaded_is_refused(
    name: str, content: bytes, right: tuple[Path, Reference], tmp_path: Path
) -> None:
    folder = shutil.copytree(right[0], tmp_path / "wrong")
    (folder / name).write_bytes(content)
    assert any(fault.startswith(name) for fault in verify_files(folder, right[1]).faults)


def test_wrong_goldens_are_refused(right: tuple[Path, Reference], tmp_path: Path) -> None:
    folder = shutil.copytree(right[0], tmp_path / "wrong")
    path = folder / "test_data_set_0" / "output_0.pb"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    faults = verify_files(folder, right[1]).faults
    assert len(faults) == 1
    assert faults[0].startswith("test_data_set_0/output_0.pb")


def test_a_trained_model_that_left_its_own_weights_is_refused(
    right: tuple[Path, Reference],
) -> None:
    """What the training process computed is held against its weights too."""
    folder, reference = right
    answers = [answer + np.float32(0.01) for answer in reference.answers]
    faults = verify_files(folder, replace(reference, answers=answers)).faults
    assert faults
    assert all(fault.startswith("trained model") for fault in faults)


def test_a_battery_without_cases_is_no_proof(right: tuple[Path, Reference]) -> None:
    folder, reference = right
    nothing = replace(reference, golden_input=reference.golden_input[:0], batches=(), answers=())
    with pytest.raises(ExportMismatch, match="no golden rows"):
        verify_files(folder, nothing)


# A process of its own.


def test_the_fresh_process_finds_what_this_one_finds(
    right: tuple[Path, Reference], tmp_path: Path
) -> None:
    folder, reference = right
    here = verify_staged(folder, reference, tmp_path)
    there = verify_in_a_worker(folder, reference, tmp_path)
    assert there == here
    assert len(there.comparisons) > 50


def test_a_verifying_process_that_dies_is_no_pass(
    right: tuple[Path, Reference], tmp_path: Path, boot: Boot
) -> None:
    """A library calls exit where the files are to be verified, and as if all were well."""
    boot("import sys, job.verify.fresh as fresh\nfresh.verify_files = lambda *_: sys.exit(0)")
    with pytest.raises(JobError, match="ended with 0") as caught:
        verify_in_a_worker(*right, tmp_path)
    assert not isinstance(caught.value, ExportMismatch)


def test_a_verifying_process_that_ends_badly_after_its_result_is_no_pass(
    right: tuple[Path, Reference], tmp_path: Path, boot: Boot
) -> None:
    boot(
        "import os, job.verify.fresh as fresh\n"
        "save = fresh.save_result\n"
        "fresh.save_result = lambda *found: (save(*found), os._exit(3))"
    )
    with pytest.raises(JobError, match="ended with 3"):
        verify_in_a_worker(*right, tmp_path)


# A published folder.


def test_a_published_folder_verifies_as_it_did(published: Path) -> None:
    verification = verify_published(published)
    verification.require_agreement()
    before = json.loads((published / "verification.json").read_text())["comparisons"]
    again = [c.as_json() for c in verification.comparisons]
    assert again == [c for c in before if c["artifact"] != "trained model"]


ERRORS = ("max_error", "max_relative_error", "max_ulps", "rms_error", "flip_margin")
SHARES = ("bound_used", "noise_used", "torch_used")
OTHERS = ("artifact", "engine", "case", "rows", "compared", "flips", "worst_row", "faults")


def test_each_comparison_says_what_was_compared_how_far_off_it_was_and_the_verdict(
    published: Path,
) -> None:
    found = json.loads((published / "verification.json").read_text())["comparisons"]
    for one in found:
        assert one.keys() == {*ERRORS, *SHARES, *OTHERS, "verdict"}
        assert (one["verdict"], one["faults"]) == ("passed", {})
        assert all(0 <= one[name] < np.inf for name in ERRORS)
        assert all(0 <= one[name] <= 1 for name in SHARES)
    place = ("model.onnx", "onnxruntime, optimised")
    said = {one["case"]: one for one in found if (one["artifact"], one["engine"]) == place}
    reference = reference_of(published, read_manifest(published))
    run = load_onnx((published / "model.onnx").read_bytes(), optimise=True)
    for case, expected in reference.expected[1:]:
        one = said.pop(case.name)
        assert one["rows"] == len(case.x)
        if case.complete:
            error = np.abs(np.asarray(run(case.x), np.float64) - expected.value)
            assert one["compared"] == error.size
            assert one["max_error"] == pytest.approx(error.max())
            assert one["rms_error"] == pytest.approx(np.sqrt(np.mean(error**2)))
            assert one["bound_used"] == pytest.approx((error / expected.bound).max())
    assert said == {}


def test_wrong_weights_with_fitting_hashes_are_refused(published: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(published, tmp_path / "copy")
    proto = onnx.load(copy / "model.onnx")
    edit_weights(one_weight)(proto)
    (copy / "model.onnx").write_bytes(proto.SerializeToString())
    rehash(copy)
    faults = verify_published(copy).faults
    assert any("holds other values in 1 of 100 elements of network.2.weight" in f for f in faults)
