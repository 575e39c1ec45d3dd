"""Rows through a published model. Needs only onnxruntime and numpy, and pyarrow for tables.

Shapes: N rows, F features, O outputs; K classes.
"""

import contextlib
import csv
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from job.durable import replacing
from job.errors import DataError, OutputError, UsageError
from job.log import event, progress
from job.manifest import published_bytes, read_manifest
from job.table import Batch, Parquet, Table, open_table, shown
from job.verify.engines import load_onnx

Float32 = NDArray[np.float32]

# Rows that go through the model at once: bounds the memory, whatever the number of rows.
ROWS_AT_ONCE = 8192


def predict_file(folder: Path, source: Path, target: Path) -> int:
    """Writes the published model's answers to the rows in `source` to `target`; returns N.

    From an .npy array (N, F) of numbers an .npy array (N, O) of float32. From a .csv or .parquet
    with a column for each feature, in any order, the same table with columns added: for each
    target y `y_predicted`; for classes `y_predicted`, the likeliest, and each one's
    `y_probability_<class>`. The target is written whole or not at all.

    Raises:
        UsageError: the files' names do not end alike, or in nothing that is read.
        MissingInputError: there is no published folder, or no rows.
        DataError: a published file or the rows are malformed; it names row and column.
        OutputError: the target cannot be created.
    """
    if source.suffix not in _WRITERS or target.suffix != source.suffix:
        raise UsageError(
            f"{source} and {target} must end alike, in one of {', '.join(_WRITERS)}, the kinds of "
            f"file that are read and written"
        )
    manifest = read_manifest(folder)
    try:
        features = manifest["signature"]["inputs"][0]
        names = list(features["features"])
        added = _Added(manifest["signature"]["outputs"][0])
    except (LookupError, TypeError, ValueError) as error:
        raise DataError(f"{folder}: manifest.json is malformed: {error!r}") from None
    table = open_table(source)
    tabular = source.suffix != ".npy"
    if tabular:
        table.require(names)
        if taken := [name for name in added.names if name in table.names]:
            raise DataError(f"{source} has a column {shown(taken)} already; rename it")
    elif len(table.names) != len(names):
        raise DataError(
            f"{source} has {len(table.names)} columns; expected (rows, {len(names)}) with columns "
            f"{shown(names)}"
        )
    run = load_onnx(published_bytes(folder, manifest, "model.onnx"))
    if target.is_dir() or not target.parent.is_dir():
        raise OutputError(f"{target} cannot be created: its folder is missing, or it is a folder")
    count = 0
    with (
        replacing(target) as file,
        _WRITERS[source.suffix](file, table, added) as write,
        progress(table.rows, "rows") as advance,
    ):
        columns = names if tabular else table.names
        missing = columns if features.get("missing") == "mean" else ()
        for batch in table.read(columns, whole=tabular, missing=missing):
            write(batch, _answers(run, batch.numbers))
            count += len(batch.numbers)
            advance(len(batch.numbers))
    event("predicted", f"{count:,} rows answered", rows=count)
    return count


class _Added:
    """The columns that a table gets, by what the manifest says of the model's output."""

    def __init__(self, output: dict[str, Any]) -> None:
        self.columns = int(output["shape"][1])
        self.classes = list(output["classes"]) if "classes" in output else None
        if self.classes is None:
            self.names = [f"{target}_predicted" for target in output["targets"]]
        else:
            target = output.get("target", "class")
            self.names = [f"{target}_predicted"]
            self.names += [f"{target}_probability_{name}" for name in self.classes]

    def of(self, answers: Float32) -> list[Sequence[Any]]:
        """Each column's values for the answers (N, O)."""
        columns: list[Sequence[Any]] = list(answers.T)
        if self.classes is None:
            return columns
        return [[self.classes[k] for k in answers.argmax(axis=1)], *columns]


def _answers(run: Callable[[Float32], Any], rows: Float32) -> Float32:
    starts = range(0, max(1, len(rows)), ROWS_AT_ONCE)  # an empty batch is answered too
    parts = [run(rows[i : i + ROWS_AT_ONCE]) for i in starts]
    answers: Float32 = np.concatenate([np.asarray(part) for part in parts])
    return answers


Writer = Callable[[Batch, Float32], None]


@contextlib.contextmanager
def _npy(file: IO[bytes], table: Table, added: _Added) -> Iterator[Writer]:
    shape = (table.rows, added.columns)
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)

    def write(batch: Batch, answers: Float32) -> None:
        file.write(answers.astype("<f4").tobytes())

    yield write


@contextlib.contextmanager
def _csv(file: IO[bytes], table: Table, added: _Added) -> Iterator[Writer]:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow([*table.names, *added.names])

    def write(batch: Batch, answers: Float32) -> None:
        given = [column.to_pylist() for column in batch.whole.columns]
        rows.writerows(zip(*given, *added.of(answers), strict=True))

    yield write
    text.detach()


@contextlib.contextmanager
def _parquet(file: IO[bytes], table: Table, added: _Added) -> Iterator[Writer]:
    import pyarrow
    import pyarrow.parquet

    assert isinstance(table, Parquet)
    float32 = pyarrow.float32()
    types = [float32] * len(added.names)
    if added.classes is not None:
        types[0] = pyarrow.array(added.classes).type
    schema = table.file.schema_arrow
    for name, kind in zip(added.names, types, strict=True):
        schema = schema.append(pyarrow.field(name, kind))
    with pyarrow.parquet.ParquetWriter(file, schema) as writer:

        def write(batch: Batch, answers: Float32) -> None:
            new = zip(added.of(answers), types, strict=True)
            columns = [*batch.whole.columns, *(pyarrow.array(v, kind) for v, kind in new)]
            writer.write_batch(pyarrow.record_batch(columns, schema=schema))

        yield write


_WRITERS = {".csv": _csv, ".parquet": _parquet, ".npy": _npy}
