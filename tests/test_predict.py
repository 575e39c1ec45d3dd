"""Rows through a published model."""

import datetime
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pyarrow
import pyarrow.parquet
import pytest
from numpy.typing import NDArray

from job import predict
from job.errors import DataError, ExitCode, UsageError

from .conftest import ROOT, Job, run_on_a_terminal


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
    assert len(golden) >= 32
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
        (np.array([[1.0] * 10, [1.0] * 9 + [np.nan]]), "row 2, column c9: the value is missing"),
        (np.array([[1.0] * 10, [1e39] * 10]), "row 2, column c0: 1e+39 is too large for float32"),
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


# Tables.

NAMES = [f"x{i}" for i in range(10)]


def values(rows: int = 500) -> NDArray[np.float32]:
    return np.random.default_rng(1).random((rows, 10)).astype(np.float32)


def wanted(folder: Path, x: NDArray[np.float32]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    answers: NDArray[np.float32] = session.run(None, {"input": x})[0]
    return answers


def csv_of(header: list[str], rows: list[list[str]]) -> str:
    return "".join(",".join(line) + "\n" for line in (header, *rows))


def test_csv_columns_in_any_order_keep_what_else_there_is(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = values()
    order = np.random.default_rng(2).permutation(10)
    header = ["id", *(NAMES[i] for i in order), "note"]
    rows = [
        [f"{n:04}", *(repr(float(v)) for v in row[order]), '"a, ""b"""' if n % 2 else ""]
        for n, row in enumerate(x)
    ]
    (tmp_path / "rows.csv").write_text(csv_of(header, rows))
    monkeypatch.setattr(predict, "ROWS_AT_ONCE", 7)
    assert predict.predict_file(published, tmp_path / "rows.csv", tmp_path / "out.csv") == 500
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert lines[0] == ",".join([*header, "y_predicted"])
    assert [line.rpartition(",")[0] for line in lines[1:]] == [",".join(row) for row in rows]
    answers = [float(line.rpartition(",")[2]) for line in lines[1:]]
    np.testing.assert_allclose(answers, wanted(published, x)[:, 0], rtol=1e-5)


def test_parquet_keeps_its_columns_with_their_types(published: Path, tmp_path: Path) -> None:
    x = values()
    columns = {"id": list(range(500)), **dict(zip(NAMES[::-1], x.T[::-1], strict=True))}
    given = pyarrow.table({**columns, "when": [datetime.date(2026, 1, 1)] * 500})
    pyarrow.parquet.write_table(given, tmp_path / "rows.parquet", row_group_size=33)
    predict.predict_file(published, tmp_path / "rows.parquet", tmp_path / "out.parquet")
    found = pyarrow.parquet.read_table(tmp_path / "out.parquet")
    assert found.drop_columns(["y_predicted"]).equals(given)
    assert found.schema.field("y_predicted").type == pyarrow.float32()
    np.testing.assert_allclose(found["y_predicted"], wanted(published, x)[:, 0], rtol=1e-5)


BAD_TABLES = [
    (csv_of(NAMES[:8], []), "has no column x8, x9; its columns are x0, x1"),
    (csv_of([*NAMES, "y_predicted"], []), "has a column y_predicted already; rename it"),
    (csv_of(NAMES, [["1"] * 10, ["1"] * 9 + ["?"]]), ":3: column x9: expected a number, got '?'"),
    (csv_of(NAMES, [["1"] * 10, ["1"] * 9 + [""]]), ":3: column x9: the value is missing"),
    (csv_of(NAMES, [["1"] * 10, ["1e39"] * 10]), ":3: column x0: 1e+39 is too large for float32"),
    (csv_of(NAMES, [["1"] * 10, ["1"] * 9]), ":3: 9 fields, and the header has 10"),
    ("", ":1: expected a header"),
]


@pytest.mark.parametrize(("content", "reason"), BAD_TABLES)
def test_a_bad_row_is_named_and_nothing_is_written(
    content: str, reason: str, published: Path, tmp_path: Path
) -> None:
    (tmp_path / "rows.csv").write_text(content)
    with pytest.raises(DataError) as refusal:
        predict.predict_file(published, tmp_path / "rows.csv", tmp_path / "out.csv")
    assert reason in str(refusal.value)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.csv"]


def test_a_bad_row_of_parquet_is_named(published: Path, tmp_path: Path) -> None:
    columns: dict[str, list[float | None]] = {name: [1.0] * 9000 for name in NAMES}
    columns["x3"][8999] = None
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match="row 9000, column x3: the value is missing"):
        predict.predict_file(published, tmp_path / "rows.parquet", tmp_path / "out.parquet")


def test_a_header_alone_is_answered_by_a_header(published: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(csv_of(NAMES, []))
    assert predict.predict_file(published, tmp_path / "rows.csv", tmp_path / "out.csv") == 0
    assert (tmp_path / "out.csv").read_text() == csv_of([*NAMES, "y_predicted"], [])


def test_numbers_in_csv_may_stand_between_blanks(published: Path, tmp_path: Path) -> None:
    (tmp_path / "plain.csv").write_text(csv_of(NAMES, [["1.5"] * 10]))
    (tmp_path / "blanks.csv").write_text(csv_of(NAMES, [[" 1.5 "] * 10]))
    for name in ("plain", "blanks"):
        predict.predict_file(published, tmp_path / f"{name}.csv", tmp_path / f"{name}-out.csv")
    plain, blanks = (
        (tmp_path / f"{name}-out.csv").read_text().splitlines()[1] for name in ("plain", "blanks")
    )
    assert plain.replace("1.5,", "") == blanks.replace(" 1.5 ,", "")


@pytest.mark.parametrize(("source", "target"), [("csv", "npy"), ("npy", "csv"), ("txt", "txt")])
def test_answers_are_of_the_same_kind_as_the_rows(
    source: str, target: str, published: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="must end alike"):
        predict.predict_file(published, tmp_path / f"a.{source}", tmp_path / f"b.{target}")


def test_a_large_table_goes_through_in_parts(published: Path, tmp_path: Path) -> None:
    """Four times the rows do not need even a fifth more memory."""
    peaks = []
    for rows in (200_000, 800_000):
        x = np.tile(values(1000), (rows // 1000, 1))
        table = pyarrow.table(dict(zip(NAMES, x.T, strict=True)))
        pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
        # Not getrusage: its peak is the parent's where that was higher before exec.
        code = "import re, sys; from job.cli import main; main(sys.argv[1:])\n"
        code += "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"
        files = ("--input", str(tmp_path / "rows.parquet"), "--output", str(tmp_path / "o.parquet"))
        done = subprocess.run(
            [sys.executable, "-c", code, "predict", str(published), *files],
            cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        peaks.append(int(done.stdout.split()[-1]))
        assert pyarrow.parquet.read_metadata(tmp_path / "o.parquet").num_rows == rows
    assert peaks[1] < 1.2 * peaks[0]


@pytest.mark.parametrize(("flags", "shown"), [((), True), (("--quiet",), False),
                                              (("--log-format", "json"), False)])  # fmt: skip
def test_a_bar_is_shown_on_a_terminal(
    flags: tuple[str, ...], shown: bool, published: Path, tmp_path: Path
) -> None:
    (tmp_path / "rows.csv").write_text(csv_of(NAMES, [["1"] * 10] * 50))
    files = ("--input", str(tmp_path / "rows.csv"), "--output", str(tmp_path / "out.csv"))
    command = [sys.executable, "-m", "job", "predict", str(published), *files, *flags]
    # stdout is none: the bar is on stderr.
    code, seen = run_on_a_terminal(["sh", "-c", 'exec "$@" > /dev/null', "sh", *command])
    assert code == 0, seen
    assert ("/50.0 " in seen) is shown, seen
