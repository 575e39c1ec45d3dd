"""Real tables: what a file holds is what is learnt, and what is wrong with it is said."""

import hashlib
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import pyarrow
import pyarrow.parquet
import pytest
from sklearn.datasets import load_diabetes, load_wine

from benchmarks import tables
from job.cli import main
from job.config import Data, Task, load_config
from job.data import Dataset, load_data
from job.errors import DataError, ExitCode, MissingInputError, OutOfMemory
from job.table import Csv, open_table
from job.verify import verify_published

from .conftest import ROOT, manifest_of, run_job

PLENTY = 2**40
ROWS = 400


def table(rows: int = ROWS) -> dict[str, list[Any]]:
    draw = np.random.default_rng(0)
    x = draw.standard_normal((rows, 3)).astype(np.float32).astype(float)
    columns = dict(zip("abc", x.T.tolist(), strict=True))
    return {**columns, "y": (x @ [1, 2, 3]).astype(np.float32).astype(float).tolist()}


def write(path: Path, columns: dict[str, list[Any]]) -> Path:
    if path.suffix == ".csv":
        lines = [columns, *zip(*columns.values(), strict=True)]
        path.write_text("".join(",".join(map(str, line)) + "\n" for line in lines))
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=150)
    else:
        np.save(path, np.transpose(list(columns.values())))
    return path


def loaded(path: Path, task: Task = "regression", seed: int = 0, **keys: Any) -> Dataset:
    keys = {"target": "y", **keys}
    return load_data(Data(kind="file", path=str(path), **keys), seed, PLENTY, task)


def rows_of(data: Dataset) -> np.ndarray[Any, np.dtype[np.float32]]:
    splits = (data.training, data.validation, data.test)
    return np.concatenate([np.hstack([split.x, split.y]) for split in splits])


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".npy"])
def test_every_row_is_in_one_split_as_it_is_in_the_file(suffix: str, tmp_path: Path) -> None:
    columns = table()
    path = write(tmp_path / f"rows{suffix}", columns)
    data = loaded(path, target="c3" if suffix == ".npy" else "y", validation=0.25)
    sizes = [len(split.x) for split in (data.training, data.validation, data.test)]
    assert (sizes, data.rows) == ([260, 100, 40], 400)
    names = ["c0", "c1", "c2", "c3"] if suffix == ".npy" else list(columns)
    assert [*data.features, *data.targets] == names
    assert data.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (data.floor, data.training.truth) == ({}, None)
    given = np.transpose(list(columns.values())).astype(np.float32)
    assert sorted(map(tuple, rows_of(data))) == sorted(map(tuple, given))


def test_the_format_makes_no_difference(tmp_path: Path) -> None:
    one, other = (rows_of(loaded(write(tmp_path / n, table()))) for n in ("a.csv", "a.parquet"))
    npy = rows_of(loaded(write(tmp_path / "a.npy", table()), target="c3"))
    assert np.array_equal(one, other)
    assert np.array_equal(one, npy)


def test_the_split_is_a_function_of_the_seed(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", table())
    first, again, other = (rows_of(loaded(path, seed=seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first[:320], other[:320])
    in_order = np.transpose(list(table().values())).astype(np.float32)
    assert not np.array_equal(first, in_order)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_column_may_say_the_split(suffix: str, tmp_path: Path) -> None:
    said = (["test"] * 2 + ["training"] * 5 + ["validation"]) * 50
    path = write(tmp_path / f"rows{suffix}", {"fold": said, **table()})
    data = loaded(path, split_by="fold")
    assert data.features == ["a", "b", "c"]
    columns = np.transpose(list(table().values())).astype(np.float32)
    for name, split in (
        ("training", data.training), ("validation", data.validation), ("test", data.test)
    ):  # fmt: skip
        wanted = columns[np.array(said) == name]
        assert np.array_equal(np.hstack([split.x, split.y]), wanted)


def test_columns_are_chosen_by_name_and_targets_may_be_several(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", {"name": ["n"] * ROWS, **table()})
    data = loaded(path, columns=["c", "a"], target=["y", "b"])
    assert (data.features, data.targets) == (["c", "a"], ["y", "b"])
    given = table()
    wanted = np.transpose([given[name] for name in "cayb"]).astype(np.float32)
    assert sorted(map(tuple, rows_of(data))) == sorted(map(tuple, wanted))


LABELS: list[tuple[str, Callable[[int], Any], list[Any]]] = [
    (".csv", lambda i: f"k{i % 3}", ["k0", "k1", "k2"]),
    (".csv", lambda i: (9, 10, -2)[i % 3], [-2, 9, 10]),
    (".csv", lambda i: ("07", "7")[i % 2], ["07", "7"]),
    (".csv", lambda i: ("NA", "DE")[i % 2], ["DE", "NA"]),
    (".parquet", lambda i: i % 2 == 0, [False, True]),
    (".parquet", lambda i: (9, 10, -2)[i % 3], [-2, 9, 10]),
    (".parquet", lambda i: (0.5, -1.5)[i % 2], [-1.5, 0.5]),
    (".parquet", lambda i: ("b", "a")[i % 2], ["a", "b"]),
]


@pytest.mark.parametrize(("suffix", "label", "wanted"), LABELS)
def test_labels_of_any_type_are_numbered_in_their_order(
    suffix: str, label: Callable[[int], Any], wanted: list[Any], tmp_path: Path
) -> None:
    labels = [label(i) for i in range(ROWS)]
    path = write(tmp_path / f"rows{suffix}", {"i": list(range(ROWS)), "y": labels})
    data = loaded(path, "classification")
    assert [(type(c), c) for c in data.classes] == [(type(c), c) for c in wanted]
    assert (data.features, data.targets) == (["i"], ["y"])
    for i, y in rows_of(data).astype(int):
        assert data.classes[y] == labels[i]


def test_classes_may_be_categories_and_those_of_an_npy_file(tmp_path: Path) -> None:
    codes = pyarrow.array([i % 2 for i in range(ROWS)], pyarrow.int8())
    categories = pyarrow.DictionaryArray.from_arrays(codes, ["no", "yes"])
    pyarrow.parquet.write_table(
        pyarrow.table({"i": list(range(ROWS)), "y": categories}), tmp_path / "rows.parquet"
    )
    assert loaded(tmp_path / "rows.parquet", "classification").classes == ["no", "yes"]
    np.save(tmp_path / "rows.npy", np.arange(2 * ROWS).reshape(ROWS, 2) % 6)
    data = loaded(tmp_path / "rows.npy", "classification", target="c1")
    assert data.classes == [1, 3, 5]


GOOD = "a,b,y\n" + "".join(f"{i},{i}.5,{2 * i}\n" for i in range(60))


def changed(line: int, text: str) -> bytes:
    lines = GOOD.encode().splitlines(keepends=True)
    return b"".join([*lines[: line - 1], text.encode(), *lines[line - 1 :]])


MALFORMED = [
    (changed(7, "1,2\n"), ":7: 2 fields, and the header has 3"),
    (changed(7, "1,2,3,4\n"), ":7: 4 fields, and the header has 3"),
    (changed(7, "1,oops,3\n"), ":7: column b: expected a number, got 'oops'"),
    (changed(7, "1,1_000,3\n"), ":7: column b: expected a number, got '1_000'"),
    (changed(7, "1,2,oops\n"), ":7: column y: expected a number, got 'oops'"),
    (changed(7, "1,,3\n"), ":7: column b: the value is missing"),
    (changed(7, "1,NA,3\n"), ":7: column b: the value is missing"),
    (changed(7, "1,2,nan\n"), ":7: column y: the value is missing"),
    (changed(7, "inf,2,3\n"), ":7: column a: inf is too large for float32"),
    (changed(7, "1e39,2,3\n"), ":7: column a: 1e+39 is too large for float32"),
    (changed(7, '1,"2,3\n'), ":7: "),
    (
        changed(7, '1,"2\n\n",3\n').replace(b"58.5", b"?"),
        ":63: column b: expected a number, got '?'",
    ),
    (changed(7, "\n\n\n").replace(b"58.5", b"?"), ":63: column b: expected a number, got '?'"),
    (changed(7, "1,2,3\n").replace(b"1,2,3", b"1,\xff,3"), ":7: not UTF-8 text"),
    (b"", ":1: expected a header"),
    (b"\n\n", ":1: expected a header"),
    (GOOD.encode().replace(b"a,b,y", b"a,a,y"), "two columns are named 'a'"),
    (GOOD.encode().replace(b"a,b,y", b"a,b,z"), "has no column y; its columns are a, b, z"),
    (GOOD.encode().replace(b",", b";"), "has no column y; its columns are a;b;y"),
    (b"a,b,y\n", "has no rows"),
    (GOOD.encode(), "to train on, 6 to validate and 6 to test, which must be 1, 1 and 32"),
    (bytes(range(256)) * 10, ""),
    (b"\x00" * 1000, ""),
]


@pytest.mark.parametrize(("content", "reason"), MALFORMED)
def test_a_malformed_csv_file_is_refused_with_line_and_column(
    content: bytes, reason: str, tmp_path: Path
) -> None:
    (tmp_path / "rows.csv").write_bytes(content)
    with pytest.raises(DataError) as refusal:
        loaded(tmp_path / "rows.csv")
    assert str(refusal.value).startswith(str(tmp_path / "rows.csv"))
    assert reason in str(refusal.value)


@pytest.mark.parametrize("quoted", ["", '"two\nlines"'])
def test_the_line_is_right_far_into_a_large_file(quoted: str, tmp_path: Path) -> None:
    """Beyond the block that is parsed at once, and after a field of two lines."""
    count, value = 300_000, 12.345678
    lines = ["note,a,y", f"{quoted},1,2", *[f",{value},{value}"] * count, ",,3"]
    (tmp_path / "rows.csv").write_text("\n".join(lines))
    assert (tmp_path / "rows.csv").stat().st_size > 2**22
    line = count + 3 + (quoted != "")
    with pytest.raises(DataError, match=f":{line}: column a: the value is missing"):
        loaded(tmp_path / "rows.csv", columns=["a"])
    lines[-1:] = [",3,3", ",oops,4"]
    (tmp_path / "rows.csv").write_text("\n".join(lines))
    with pytest.raises(DataError, match=f":{line + 1}: column a: expected a number, got 'oops'"):
        loaded(tmp_path / "rows.csv", columns=["a"])


def test_a_byte_order_mark_and_other_line_ends_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", table())
    plain = rows_of(loaded(path))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert np.array_equal(rows_of(loaded(path)), plain)
    path.write_bytes(path.read_bytes() + b"1,2,x,4\r\n")
    with pytest.raises(DataError, match=":402: column c: expected a number, got 'x'"):
        loaded(path)


def test_a_word_that_is_no_split_is_refused_with_its_line(tmp_path: Path) -> None:
    said = ["training"] * (ROWS - 1) + ["holdout"]
    path = write(tmp_path / "rows.csv", {**table(), "fold": said})
    with pytest.raises(DataError, match=r":401: column fold: expected training or .*'holdout'"):
        loaded(path, split_by="fold")
    path = write(tmp_path / "rows.parquet", {**table(), "fold": said})
    with pytest.raises(DataError, match="row 400, column fold: expected training or validation"):
        loaded(path, split_by="fold")


def test_a_missing_label_or_no_real_choice_of_them_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", {"i": [1] * ROWS, "y": ["k"] * (ROWS - 1) + [""]})
    with pytest.raises(DataError, match=":401: column y: the value is missing"):
        loaded(path, "classification")
    path = write(tmp_path / "rows.parquet", {"i": [1] * ROWS, "y": ["k"] * ROWS})
    with pytest.raises(DataError, match="column y has 1 classes, not 2 to 65536"):
        loaded(path, "classification")
    path = write(tmp_path / "rows.parquet", table(65_600))
    with pytest.raises(DataError, match="for numbers choose the loss mse"):
        loaded(path, "classification")


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (pyarrow.array([0.0, math.inf] * 200), "row 2, column y: inf is not finite"),
        (
            pyarrow.array([1, 2] * 200).cast(pyarrow.timestamp("ns")),
            r"timestamp\[ns\] cannot be classes",
        ),
        (pyarrow.array([b"a", b"b"] * 200), "binary cannot be classes, text can"),
    ],
    ids=["infinite", "nanoseconds", "bytes"],
)
def test_labels_that_a_manifest_cannot_name_are_refused(
    labels: pyarrow.Array, reason: str, tmp_path: Path
) -> None:
    columns = {"i": list(range(ROWS)), "y": labels}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=reason):
        loaded(tmp_path / "rows.parquet", "classification")


def test_an_infinite_label_of_an_npy_file_is_refused(tmp_path: Path) -> None:
    rows = np.ones((ROWS, 2), np.float32)
    rows[7, 1] = np.inf
    np.save(tmp_path / "rows.npy", rows)
    with pytest.raises(DataError, match="row 8, column c1: inf is not finite"):
        loaded(tmp_path / "rows.npy", "classification", target="c1")


@pytest.mark.parametrize("split_by", [None, "fold"])
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_without_rows_is_refused(suffix: str, split_by: str | None, tmp_path: Path) -> None:
    path = write(tmp_path / f"rows{suffix}", {name: [] for name in ("a", "y", "fold")})
    with pytest.raises(DataError, match=f"{path}"):
        loaded(path, split_by=split_by)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "row 70002, column b: the value is missing"),
        (float("nan"), "row 70002, column b: the value is missing"),
        (float("inf"), "row 70002, column b: inf is too large"),
        (1e300, r"row 70002, column b: 1e\+300 is too large"),
    ],
)
def test_a_bad_value_in_parquet_is_refused_with_row_and_column(
    value: float | None, reason: str, tmp_path: Path
) -> None:
    columns = table(70_100)
    columns["b"][70_001] = value
    with pytest.raises(DataError, match=reason):
        loaded(write(tmp_path / "rows.parquet", columns))


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"a": ["text"] * ROWS, "y": [1] * ROWS}, "column a holds string, not numbers"),
        ({"a": [[1]] * ROWS, "y": [1] * ROWS}, "column a holds list<.*>, not numbers"),
        ({"y": [1] * ROWS}, "has no column besides y to learn from"),
    ],
)
def test_parquet_columns_that_are_no_numbers_are_refused(
    columns: dict[str, list[Any]], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=reason):
        loaded(write(tmp_path / "rows.parquet", columns))


def test_whole_numbers_of_any_width_and_truth_values_are_numbers(tmp_path: Path) -> None:
    columns = {
        "a": pyarrow.array([True, False] * 200),
        "b": pyarrow.array([2**63 - 1] * ROWS, pyarrow.int64()),
        "c": pyarrow.array(["1.25"] * ROWS).cast(pyarrow.decimal128(5, 2)),
        "y": pyarrow.array([1] * ROWS, pyarrow.uint8()),
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "rows.parquet")
    rows = rows_of(loaded(tmp_path / "rows.parquet"))
    assert {tuple(row) for row in rows.tolist()} == {(a, 2.0**63, 1.25, 1.0) for a in (0.0, 1.0)}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def other_bytes(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[100:1100] = bytes(1000)
    path.write_bytes(content)


def text(path: Path) -> None:
    path.write_text(GOOD)


@pytest.mark.parametrize(
    ("suffix", "spoil"),
    [
        *((".parquet", spoil) for spoil in (cut, other_bytes, text)),
        *((".npy", spoil) for spoil in (cut, text)),
    ],
)
def test_a_malformed_binary_file_is_refused(
    spoil: Callable[[Path], None], suffix: str, tmp_path: Path
) -> None:
    path = write(tmp_path / f"rows{suffix}", table())
    spoil(path)
    with pytest.raises(DataError, match=str(path)):
        loaded(path, target="y" if suffix == ".parquet" else "c3")


def test_what_is_no_file_is_66(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    os.mkfifo(tmp_path / "fifo.csv")
    for name in ("folder.csv", "fifo.csv", "nowhere.csv", "nowhere.parquet", "nowhere.npy"):
        with pytest.raises(MissingInputError, match=name):
            loaded(tmp_path / name)


def test_what_cannot_fit_is_refused_by_the_sum_before_it_is_read(tmp_path: Path) -> None:
    """Sparse files: nothing could read them, or know their digest, in the time of a test."""
    terabyte = 2**40
    with open(tmp_path / "rows.npy", "wb") as file:
        shape = (terabyte // 400, 100)
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f4", "fortran_order": False, "shape": shape}
        )
        file.truncate(file.tell() + 4 * shape[0] * 100)
    line = b"1.5,2.5,3.5\n"
    with open(tmp_path / "rows.csv", "wb") as file:
        file.write(b"a,b,y\n" + line * 500_000)
        file.truncate(terabyte)
    for name, target, rows in (
        ("rows.npy", "c99", terabyte // 400), ("rows.csv", "y", terabyte // len(line))
    ):  # fmt: skip
        data = Data(kind="file", path=str(tmp_path / name), target=(target,))
        assert open_table(tmp_path / name).rows == pytest.approx(rows, rel=0.001)
        with pytest.raises(OutOfMemory, match=r"GiB and 1024\.0 GiB may be used"):
            load_data(data, 0, terabyte)
    path = write(tmp_path / "rows.parquet", table())
    with pytest.raises(OutOfMemory, match="about 400 rows of 4 columns"):
        load_data(Data(kind="file", path=str(path), target=("y",)), 0, 2**28 + 20_000)
    load_data(Data(kind="file", path=str(path), target=("y",)), 0, 2**28 + 24_000)


def test_the_estimate_of_a_small_csv_file_is_its_rows(tmp_path: Path) -> None:
    for ending in ("", "\n"):
        (tmp_path / "rows.csv").write_text("a,b\n" + "\n".join(["1,2"] * 77) + ending)
        assert Csv(tmp_path / "rows.csv").rows == 77


def test_without_pyarrow_it_says_what_to_install(tmp_path: Path) -> None:
    write(tmp_path / "rows.csv", table())
    code = "import sys; sys.modules['pyarrow'] = None; from job.cli import main\n"
    code += "sys.exit(main(sys.argv[1:]))"
    keys = ("data.kind=file", "data.path=rows.csv", "data.target=y", "device=cpu")
    command = [sys.executable, "-c", code, "train", "--config", str(ROOT / "job.yaml"), *keys]
    done = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == ExitCode.NO_INPUT, done.stderr
    assert "pip install pyarrow" in done.stderr.splitlines()[-1]


# Through the real command, on tables that scikit-learn ships.

CONFIG = ("--config", str(ROOT / "job.yaml"), "device=cpu", "threads=1")
NUMBERS = ("data.kind=file", "data.path=diabetes.csv", "data.target=progression",
           "train.epochs=2", "train.batch_size=64")  # fmt: skip
CLASSES = ("data.kind=file", "data.path=wine.parquet", "data.target=cultivar", "data.test=0.25",
           "train.loss=cross_entropy", "train.epochs=10", "train.batch_size=32")  # fmt: skip


def write_shipped(folder: Path) -> None:
    diabetes, wine = load_diabetes(scaled=False), load_wine()
    columns = dict(zip(diabetes.feature_names, diabetes.data.T.tolist(), strict=True))
    write(folder / "diabetes.csv", {**columns, "progression": diabetes.target.tolist()})
    columns = dict(zip(wine.feature_names, wine.data.T.tolist(), strict=True))
    names = wine.target_names[wine.target].tolist()
    write(folder / "wine.parquet", {**columns, "cultivar": names})


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the two tables and a published run of each, to be read only."""
    folder = tmp_path_factory.mktemp("tables")
    write_shipped(folder)
    for name, keys in (("numbers", NUMBERS), ("classes", CLASSES)):
        done = run_job("train", *CONFIG, *keys, "--run-id", name, cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder


def test_the_manifest_says_what_was_learnt_from(runs: Path) -> None:
    numbers, classes = (manifest_of(runs / "artifacts/runs" / n) for n in ("numbers", "classes"))
    digest = hashlib.sha256((runs / "diabetes.csv").read_bytes()).hexdigest()
    assert numbers["data"] == {"kind": "file", "rows": 442, "sha256": digest, "floor": {}}
    (inputs,), (outputs,) = numbers["signature"]["inputs"], numbers["signature"]["outputs"]
    assert inputs["features"] == ["age", "sex", "bmi", "bp", *(f"s{i}" for i in range(1, 7))]
    assert outputs["targets"] == ["progression"]
    assert numbers["metrics"]["test"]["excess_risk"] is None
    (outputs,) = classes["signature"]["outputs"]
    assert outputs["classes"] == ["class_0", "class_1", "class_2"]
    assert (outputs["target"], outputs["shape"]) == ("cultivar", ["batch", 3])
    assert classes["metrics"]["test"]["excess_risk"] is None
    assert classes["metrics"]["test"]["accuracy"] > 0.9


@pytest.mark.parametrize("name", ["numbers", "classes"])
def test_a_published_run_verifies(name: str, runs: Path) -> None:
    verify_published(runs / "artifacts/runs" / name).require_agreement()


def test_the_published_job_yaml_makes_the_same_model_where_the_file_lies(
    runs: Path, tmp_path: Path
) -> None:
    published = runs / "artifacts/runs/numbers"
    shutil.copy(runs / "diabetes.csv", tmp_path)
    shutil.copy(published / "job.yaml", tmp_path)
    done = run_job("train", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for name in (
        "model.onnx",
        "model.torchscript.pt",
        "model.pt2",
        "model.safetensors",
        "job.yaml",
    ):
        assert (tmp_path / "artifacts/latest" / name).read_bytes() == (
            published / name
        ).read_bytes()
    with open(tmp_path / "diabetes.csv", "a") as file:
        file.write("1,2,3,4,5,6,7,8,9,10,11\n")
    done = run_job("train", cwd=tmp_path)
    assert done.returncode == ExitCode.DATA, done.stderr
    assert "is not the file whose SHA-256 is data.sha256" in done.stderr


def test_a_run_is_known_by_the_files_content_and_not_by_its_place(
    runs: Path, tmp_path: Path
) -> None:
    output = ("--output", str(runs / "artifacts"), "--run-id", "numbers")
    shutil.copy(runs / "diabetes.csv", tmp_path / "moved.csv")
    keys = [key for key in NUMBERS if "path" not in key]
    done = run_job("train", *CONFIG, *keys, "data.path=moved.csv", *output, cwd=tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, str(runs / "artifacts/runs/numbers"))
    with open(tmp_path / "moved.csv", "a") as file:
        file.write("1,2,3,4,5,6,7,8,9,10,11\n")
    done = run_job("train", *CONFIG, *keys, "data.path=moved.csv", *output, cwd=tmp_path)
    assert done.returncode == ExitCode.CONFIG
    assert "published already, from another configuration" in done.stderr


@pytest.mark.parametrize(
    ("keys", "code", "reason"),
    [
        ([*NUMBERS, "data.path=nowhere.csv"], 66, "there is no file nowhere.csv"),
        ([*NUMBERS, "data.target=progress"], 65, "has no column progress; its columns are age"),
        ([*CLASSES, "train.class_weights=[1, 2]"], 78, "train.class_weights: there are 3 classes"),
        ([*NUMBERS, "data.path=wine.parquet", "data.target=hue"], 65, "cultivar holds string, not"),
        ([*NUMBERS, "train.schedule={warmup: 12}"], 78, "a warmup of 12 steps does not end"),
        ([*CLASSES, "data.target=[cultivar, hue]"], 78, "classes are those of one column"),
        ([*NUMBERS, "data.path=rows.xlsx"], 78, "data.path"),
        ([*NUMBERS, "data.samples=500"], 78, "data.samples: this is of the kind"),
        ([*NUMBERS, "data.split_by=sex"], 65, "column sex: expected training or validation"),
        ([*NUMBERS, "data.columns=[progression]"], 78, "column progression is in data.target"),
        ([*NUMBERS, "data.columns=[age, bmi, age]"], 78, "column age is in data.target or data"),
        ([*NUMBERS, "data.split_by=sex", "data.test=0.2"], 78, "data.split_by says which rows"),
    ],
)  # fmt: skip
def test_a_wrong_end_has_its_code(
    keys: list[str],
    code: int,
    reason: str,
    runs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In this process, which has imported what takes a command most of its time."""
    monkeypatch.chdir(runs)
    assert main(["train", *CONFIG, *keys, "--output", str(tmp_path)]) == code
    said = capsys.readouterr().err
    assert reason in said
    assert "Traceback" not in said
    assert not list(tmp_path.glob("runs/*"))


def test_predict_names_the_class_and_each_probability(runs: Path, tmp_path: Path) -> None:
    folder, source = runs / "artifacts/runs/classes", runs / "wine.parquet"
    target = tmp_path / "answers.parquet"
    done = run_job("predict", str(folder), "--input", str(source), "--output", str(target))
    assert (done.returncode, done.stdout) == (0, f"{target}\n"), done.stderr
    given, answers = (pyarrow.parquet.read_table(path) for path in (source, target))
    names = [f"class_{k}" for k in range(3)]
    added = ["cultivar_predicted", *(f"cultivar_probability_{name}" for name in names)]
    assert answers.drop_columns(added).equals(given)
    probabilities = np.transpose([answers[name].to_numpy() for name in added[1:]])
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)
    predicted = answers["cultivar_predicted"].to_pylist()
    assert predicted == [names[k] for k in probabilities.argmax(axis=1)]
    assert (
        np.mean([p == g for p, g in zip(predicted, given["cultivar"].to_pylist(), strict=True)])
        > 0.9
    )


class Learnt(NamedTuple):
    """A published run of a table whose absolute path it was told."""

    name: str
    keys: list[str]
    folder: Path


@pytest.fixture(scope="module", params=["diabetes", "breast_cancer"])
def learnt(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Learnt:
    folder = tmp_path_factory.mktemp(request.param)
    keys = tables.overrides(request.param, tables.write_csv(request.param, folder))
    assert any(key.startswith("data.path=/") for key in keys)
    done = run_job("train", *CONFIG, *keys, "--output", str(folder / "out"))
    assert done.returncode == 0, done.stderr
    return Learnt(request.param, keys, folder / "out/latest")


def test_a_published_run_names_no_path(learnt: Learnt) -> None:
    place = str(learnt.folder.parent.parent)
    for path in learnt.folder.rglob("*"):
        assert path.is_dir() or place.encode() not in path.read_bytes(), path
    config = (learnt.folder / "job.yaml").read_text()
    assert re.findall(r"path: (\S+)", config) == [f"{learnt.name}.csv"]
    assert "/" not in config
    # What is left of the page without its tags and the addresses of documentation.
    page = (learnt.folder / "report.html").read_text()
    assert re.findall(r"(?<![\w<:/])/(?:\w[\w.-]*/)+[\w.-]*", page) == []


def test_it_learns_as_scikit_learns_own_mlp_does(learnt: Learnt) -> None:
    """On the same split: within four standard deviations of what scikit-learn scores from one
    initialisation to another, and one row."""
    name, keys, folder = learnt
    manifest = manifest_of(folder)
    config = load_config(None, keys)
    data = load_data(config.data, config.seed_number, PLENTY, config.train.task)
    theirs = [tables.scikit_learns(config, data, seed) for seed in range(10)]
    score = manifest["metrics"]["test"][tables.TABLES[name][1]]
    off = abs(score - np.mean(theirs))
    assert off <= 4 * np.std(theirs, ddof=1) + 1 / len(data.test.x)


HOLES = ("data.kind=file", "data.path=holes.csv", "data.target=y", "data.missing=mean",
         "train.epochs=2", "train.batch_size=64")  # fmt: skip


def with_holes() -> dict[str, list[Any]]:
    """The table with a tenth of a's and b's values missing."""
    columns, draw = table(), np.random.default_rng(3)
    for name in "ab":
        columns[name] = ["NA" if draw.random() < 0.1 else value for value in columns[name]]
    return columns


@pytest.fixture(scope="module")
def holes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with such a table and a published run of it, to be read only."""
    folder = tmp_path_factory.mktemp("holes")
    write(folder / "holes.csv", with_holes())
    done = run_job("train", *CONFIG, *HOLES, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_a_missing_feature_is_the_mean_of_the_training_rows_in_the_graph(holes: Path) -> None:
    folder = holes / "artifacts/latest"
    data = loaded(holes / "holes.csv", missing="mean")
    assert 0.05 < np.isnan(data.training.x[:, :2]).mean() < 0.15
    mean = np.nanmean(data.training.x, axis=0, dtype=np.float64).astype(np.float32)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    gone = np.isnan(data.test.x)
    assert gone.any()
    filled = np.where(gone, mean, data.test.x)
    answers, wanted = (session.run(None, {"input": x})[0] for x in (data.test.x, filled))
    np.testing.assert_allclose(answers, wanted, rtol=1e-6)
    for name in ("input", "output"):
        assert np.isfinite(np.load(folder / f"golden/{name}.npy")).all()
    done = run_job("verify", str(folder))
    assert done.returncode == 0, done.stderr


def test_predict_takes_missing_features_where_the_model_does(holes: Path, tmp_path: Path) -> None:
    def answered(name: str) -> list[list[str]]:
        target = tmp_path / f"{name}.csv"
        files = ("--input", str(holes / f"{name}.csv"), "--output", str(target))
        done = run_job("predict", str(holes / "artifacts/latest"), *files)
        assert done.returncode == 0, done.stderr
        return [line.split(",") for line in target.read_text().splitlines()[1:]]

    rows = answered("holes")
    assert [row[:4] for row in rows] == [
        list(map(str, row)) for row in zip(*with_holes().values(), strict=True)
    ]
    assert np.isfinite([float(row[4]) for row in rows]).all()


def test_a_target_may_not_be_missing_nor_all_of_a_feature(tmp_path: Path) -> None:
    columns = with_holes()
    columns["y"][-1] = ""
    with pytest.raises(DataError, match=":401: column y: the value is missing"):
        loaded(write(tmp_path / "rows.csv", columns), missing="mean")
    columns = {**table(), "b": [""] * ROWS}
    with pytest.raises(DataError, match="column b has no value in the training rows"):
        loaded(write(tmp_path / "rows.csv", columns), missing="mean")
    columns["b"][7] = "inf"
    with pytest.raises(DataError, match=":9: column b: inf is too large"):
        loaded(write(tmp_path / "rows.csv", columns), missing="mean")
