"""Rows through a published model."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from job import predict
from job.errors import ExitCode

from .conftest import Job


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    values = np.random.default_rng(0).random((1000, 10)).astype(np.float32)
    np.save(tmp_path / "rows.npy", values)
    return tmp_path / "rows.npy"


def test_the_goldens_come_out_again(published: Path, job: Job, tmp_path: Path) -> None:
    target = tmp_path / "answers.npy"
    source = published / "golden" / "input.npy"
    done = job("predict", str(published), "--input", str(source), "--output", str(target))
    assert (done.returncode, done.stdout) == (0, f"{target}\n")
    answers, golden = np.load(target), np.load(published / "golden" / "output.npy")
    assert (answers.dtype, answers.shape) == (golden.dtype, golden.shape)
    np.testing.assert_allclose(answers, golden, rtol=1e-5, atol=1e-5)


def test_many_rows_answer_as_they_would_alone(
    published: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = rows.with_name("whole.npy"), rows.with_name("parts.npy")
    predict.predict_file(published, rows, whole)
    monkeypatch.setattr(predict, "ROWS_AT_ONCE", 7)
    assert predict.predict_file(published, rows, parts) == 1000
    np.testing.assert_allclose(np.load(parts), np.load(whole), rtol=1e-5)


@pytest.mark.parametrize("kind", ["float64", "int32", "float16", ">f4"])
def test_numbers_of_any_type_are_taken(kind: str, published: Path, tmp_path: Path) -> None:
    values = np.arange(40).reshape(4, 10).astype(kind)
    np.save(tmp_path / "rows.npy", values)
    np.save(tmp_path / "plain.npy", values.astype(np.float32))
    for name in ("rows", "plain"):
        source, target = tmp_path / f"{name}.npy", tmp_path / f"{name}-out.npy"
        predict.predict_file(published, source, target)
    one, two = (np.load(tmp_path / f"{name}-out.npy") for name in ("rows", "plain"))
    assert np.array_equal(one, two)


def test_no_rows_give_no_answers(published: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.zeros((0, 10), np.float32))
    predict.predict_file(published, tmp_path / "rows.npy", tmp_path / "out.npy")
    assert np.load(tmp_path / "out.npy").shape == (0, 1)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.zeros((3, 9), np.float32), "expected (rows, 10) with columns x0, x1"),
        (np.zeros(10, np.float32), "has shape (10,)"),
        (np.zeros((3, 10), np.complex64), "real numbers"),
        (np.zeros((3, 10), "U3"), "real numbers"),
    ],
)
def test_rows_that_do_not_fit_are_65(
    values: NDArray[Any], reason: str, published: Path, job: Job, tmp_path: Path
) -> None:
    np.save(tmp_path / "rows.npy", values)
    source, target = tmp_path / "rows.npy", tmp_path / "out.npy"
    done = job("predict", str(published), "--input", str(source), "--output", str(target))
    assert done.returncode == ExitCode.DATA
    assert reason in done.stderr
    assert not target.exists()


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"hello", b"\x93NUMPY\x01\x00v\x00{}"])
def test_a_file_that_is_no_array_is_65(
    content: bytes, published: Path, job: Job, tmp_path: Path
) -> None:
    (tmp_path / "rows.npy").write_bytes(content)
    source, target = tmp_path / "rows.npy", tmp_path / "out.npy"
    done = job("predict", str(published), "--input", str(source), "--output", str(target))
    assert done.returncode == ExitCode.DATA
    assert "Traceback" not in done.stderr


def test_a_pickle_is_never_loaded(published: Path, job: Job, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path}/exploded",)

    np.save(tmp_path / "rows.npy", np.array([[Bomb()] * 10], object), allow_pickle=True)
    source, target = tmp_path / "rows.npy", tmp_path / "out.npy"
    done = job("predict", str(published), "--input", str(source), "--output", str(target))
    assert done.returncode == ExitCode.DATA
    assert not (tmp_path / "exploded").exists()


def test_every_other_wrong_end_has_its_code(
    published: Path, rows: Path, job: Job, tmp_path: Path
) -> None:
    def code(folder: Path, source: Path, target: Path) -> int:
        done = job("predict", str(folder), "--input", str(source), "--output", str(target))
        assert "Traceback" not in done.stderr
        return done.returncode

    out = tmp_path / "out.npy"
    assert code(published, tmp_path / "nowhere.npy", out) == ExitCode.NO_INPUT
    assert code(tmp_path / "nowhere", rows, out) == ExitCode.NO_INPUT
    assert code(published, rows, tmp_path / "nowhere" / "out.npy") == ExitCode.CANNOT_CREATE
    assert code(published, rows, tmp_path / "out.csv") == ExitCode.USAGE
    broken = shutil.copytree(published, tmp_path / "broken")
    (broken / "model.onnx").write_bytes(b"other")
    assert code(broken, rows, out) == ExitCode.DATA
    assert not out.exists()
    assert job("predict", str(published)).returncode == ExitCode.USAGE


def test_the_answers_have_the_rights_of_any_new_file(
    published: Path, rows: Path, tmp_path: Path
) -> None:
    predict.predict_file(published, rows, tmp_path / "out.npy")
    (tmp_path / "any").write_text("")
    assert (tmp_path / "out.npy").stat().st_mode == (tmp_path / "any").stat().st_mode
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_the_end_is_told(published: Path, rows: Path, job: Job) -> None:
    target = str(rows.with_name("out.npy"))
    done = job("predict", str(published), "--input", str(rows), "--output", target)
    assert json.loads(done.stderr.splitlines()[-1])["message"].startswith("OK (0): 1000 rows")
