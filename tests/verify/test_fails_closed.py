"""Doubt is never a pass: one comparison, a whole verification, the verifying process."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from job.errors import ExportMismatch, JobError
from job.verify import Comparison, Reference, Verification, fresh, verify_files
from job.verify.battery import Case
from job.verify.compare import NOISE_LIMIT, compare
from job.verify.oracle import Answer
from tests.conftest import Boot, verify_in_a_worker

from .models import sample

ROWS = Case("rows", np.zeros((4, 1), np.float32))
VALUE = np.array([[1.0], [2.0], [3.0], [4.0]])
SURE = np.zeros(4, np.bool_)


def judged(got: object, expected: Answer, case: Case = ROWS) -> str:
    return str(compare("file", "engine", case, got, expected).fault)


def test_a_nan_never_passes() -> None:
    expected = Answer(VALUE, np.full((4, 1), np.inf), SURE, VALUE)
    got = np.full((4, 1), np.nan, np.float32)
    assert "outside the bound" in judged(got, replace(expected, bound=VALUE))
    assert "may overflow" in judged(got, expected, replace(ROWS, complete=True))


def test_an_answer_that_only_broadcasts_does_not_pass() -> None:
    expected = Answer(VALUE, VALUE, SURE, VALUE)
    for got in (VALUE[:, 0], VALUE.T, VALUE[:1], VALUE[None], np.float32(1) * VALUE[0, 0]):
        fault = judged(np.asarray(got, np.float32), expected)
        assert "the answer has shape" in fault


def test_no_columns_are_no_proof() -> None:
    nothing = np.zeros((4, 0))
    assert "nothing to compare" in judged(
        nothing.astype(np.float32), Answer(nothing, nothing, SURE, nothing)
    )


def test_the_rms_error_is_held_to_the_noise_and_not_beyond() -> None:
    noise = np.full((4, 1), 1e-3)
    expected = Answer(VALUE, np.full((4, 1), 10.0), SURE, noise)
    for share, passes in ((0.99, True), (1.01, False)):
        got = (VALUE + share * NOISE_LIMIT * 1e-3).astype(np.float32)
        found = compare("file", "engine", ROWS, got, expected)
        assert found.noise_used == pytest.approx(share, rel=1e-3)
        assert found.passed == passes
    assert "the RMS error" in str(found.fault)


def test_a_verification_of_nothing_is_not_passed() -> None:
    faults = Verification([], [], {}).faults
    assert "no model file was run" in faults
    assert "model.onnx: was not run" in faults
    assert not Verification([], [], {}).as_json()["passed"]


def test_an_empty_batch_alone_is_no_proof() -> None:
    alone = [
        Comparison(name, "engine", "empty batch", 0)
        for name in ("model.onnx", "model.torchscript.pt")
    ]
    assert "model.onnx: was not run" in Verification(alone, [], {}).faults


def test_an_engine_that_compared_nothing_is_named() -> None:
    idle = [
        Comparison("model.onnx", "onnxruntime", "scale", 7, compared=0),
        Comparison("model.torchscript.pt", "torch.jit", "scale", 7, compared=7),
    ]
    faults = Verification(idle, [], {}).faults
    assert faults == ["model.onnx in onnxruntime: nothing was compared"]


def test_weights_that_could_not_be_read_do_not_excuse_a_model_that_did_not_run() -> None:
    ran = [Comparison("model.torchscript.pt", "torch.jit", "rows", 7, compared=7)]
    unread = Verification(ran, ["model.onnx: its weights, as the library is missing"], {})
    assert unread.faults == ["model.onnx: was not run"]
    unavailable = Verification(ran, ["model.onnx in onnxruntime: it is not installed"], {})
    assert unavailable.faults == []
    with pytest.raises(ExportMismatch, match="not installed"):
        unavailable.require_agreement()


# Whole folders.


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Reference]:
    folder = tmp_path_factory.mktemp("fails_closed")
    return folder, sample(0, (6,), "silu").export(folder)


@pytest.mark.parametrize(
    "name",
    [
        "golden/input.npy",
        "golden/output.npy",
        "test_data_set_0/input_0.pb",
        "test_data_set_0/output_0.pb",
        "model.onnx",
        "model.torchscript.pt",
    ],
)
@pytest.mark.parametrize("state", ["missing", "a folder", "empty", "garbage"])
def test_a_file_that_cannot_be_read_is_a_fault_that_names_it(
    name: str, state: str, right: tuple[Path, Reference], tmp_path: Path
) -> None:
    folder = shutil.copytree(right[0], tmp_path / "folder")
    path = folder / name
    path.unlink()
    if state == "a folder":
        path.mkdir()
    elif state != "missing":
        path.write_bytes(b"" if state == "empty" else b"\x93NUMPY\x01\x00garbage")
    faults = verify_files(folder, right[1]).faults
    assert faults
    assert all(fault.startswith(name) for fault in faults)


# A process of its own.


def test_another_process_verifies_which_imports_nothing_from_the_working_directory(
    right: tuple[Path, Reference], tmp_path: Path, boot: Boot, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = tmp_path / "pid"
    boot(f"import os; open({str(note)!r}, 'w').write(str(os.getpid()))")
    for name in ("job", "numpy", "json"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    verify_in_a_worker(*right, tmp_path).require_agreement()
    assert int(note.read_text()) != os.getpid()


@pytest.fixture(scope="module")
def verified_before(
    right: tuple[Path, Reference], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder for handing over, through which the right files were verified already."""
    work = tmp_path_factory.mktemp("work")
    verify_in_a_worker(*right, work).require_agreement()
    return work


@pytest.mark.parametrize("end", ["os._exit(0)", "os._exit(81)", "os.kill(os.getpid(), 11)"])
def test_an_earlier_result_is_no_answer(
    end: str, right: tuple[Path, Reference], verified_before: Path, boot: Boot
) -> None:
    boot(f"import os; {end}")
    with pytest.raises(JobError, match=r"the fork server (ended|was killed)") as caught:
        verify_in_a_worker(*right, verified_before)
    assert not isinstance(caught.value, ExportMismatch)


HALF = '{"comparisons": [{}], "skipped": [], "sha256": {}, "self_check": [], "diagnosis": null}'


@pytest.mark.parametrize("result", ["", "[]", '{"comparisons": []}', '{"comparisons": [{}]}', HALF])
def test_half_a_result_is_not_read(result: str, tmp_path: Path) -> None:
    """By what is taken for no result, as the next test sees."""
    (tmp_path / "result.json").write_text(result)
    with pytest.raises((OSError, ValueError, KeyError, TypeError)):
        fresh._read(tmp_path / "result.json")


def test_half_a_result_is_no_answer(
    right: tuple[Path, Reference], tmp_path: Path, boot: Boot
) -> None:
    boot(
        "import job.verify.fresh as fresh\n"
        "fresh.save_result = lambda _, result: result.write_text('{\"comparisons\": []}')"
    )
    with pytest.raises(JobError, match="left no result"):
        verify_in_a_worker(*right, tmp_path)


def test_a_reference_is_the_same_after_its_file(
    right: tuple[Path, Reference], tmp_path: Path
) -> None:
    reference = replace(right[1], task="classification")  # the task that is not the default
    reference.save(tmp_path / "reference.safetensors")
    again = Reference.load(tmp_path / "reference.safetensors")

    def content(one: Reference) -> list[tuple[tuple[int, ...], str, bytes]]:
        arrays: list[NDArray[np.float32]] = [one.weights[name] for name in sorted(one.weights)]
        arrays += [one.golden_input, one.golden_output, *one.answers]
        return [(a.shape, a.dtype.str, a.tobytes()) for a in arrays]

    assert again.weights.keys() == reference.weights.keys()
    assert content(again) == content(reference)
    assert (again.activation, again.task) == (reference.activation, reference.task)
    assert json.dumps(again.batches) == json.dumps(list(reference.batches))
