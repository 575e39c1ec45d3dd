"""Tables on disk as batches of columns: .csv and .parquet through pyarrow, .npy through numpy.

Shapes: N rows of a batch, C columns that are asked for.
"""

import csv
import io
import math
import os
import stat
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from job.errors import DataError, MissingInputError, NoPermission

Float32 = NDArray[np.float32]

# What an empty field of a CSV file may be written as, where a number is expected.
MISSING = ("", "NA", "NaN", "nan", "null")

# Values in one batch, and rows at the most.
_BATCH_VALUES = 2**20
_BATCH_ROWS = 2**16
# Bytes of a CSV file that are parsed at once; a line must fit.
_BLOCK = 2**22


@dataclass(frozen=True)
class Words:
    """A column of anything: row i holds values[codes[i]]."""

    codes: NDArray[np.intp]  # (N,)
    values: list[Any]


@dataclass(frozen=True)
class Batch:
    """Some rows: `numbers` (N, C), finite but for NaN where missing ones are let through; `words`
    by column; `whole`, a pyarrow.RecordBatch of all columns, if it was asked for."""

    numbers: Float32
    words: Mapping[str, Words]
    whole: Any = None


class Table:
    """A table that lies in a file; `names` are its columns.

    Raises:
        MissingInputError: there is no regular file, or the library that reads it is missing.
        NoPermission: the file may not be read.
        DataError: it is malformed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise MissingInputError(f"{path} is not a regular file")
            self.names, self.rows = self._open()
        except FileNotFoundError:
            raise MissingInputError(f"there is no file {path}") from None
        except PermissionError:
            raise NoPermission(f"{path} may not be read") from None
        if len(set(self.names)) < len(self.names):
            twice = next(name for name in self.names if self.names.count(name) > 1)
            raise DataError(f"{path}: two columns are named {twice!r}")

    rows: int  # of a .csv an estimate, from its size and its first lines
    names: list[str]

    def require(self, names: Collection[str]) -> None:
        """Raises DataError if a column is not there; it names all that are missing."""
        there = set(self.names)
        if missing := [name for name in names if name not in there]:
            raise DataError(
                f"{self.path} has no column {shown(missing)}; its columns are {shown(self.names)}"
            )

    def read(
        self,
        numbers: Sequence[str],
        words: Mapping[str, Collection[str]] | None = None,
        *,
        whole: bool = False,
        missing: Collection[str] = (),
    ) -> Iterator[Batch]:
        """The rows in their order. `words` maps columns of anything to what they may hold, where
        that is not all. In the columns `missing` a missing number is let through as NaN.

        Raises:
            DataError: a value is missing, no number, too large for float32 or not allowed; it names
                row (of a .csv the line) and column. Or the file is malformed.
        """
        words = words or {}
        start = 0
        optional = set(missing)
        may_miss = np.array([name in optional for name in numbers])
        for columns, record in self._batches([*numbers, *words], numbers, whole):
            found = np.empty((len(next(iter(columns.values()))), len(numbers)), np.float32)
            for i, name in enumerate(numbers):
                with np.errstate(over="ignore", invalid="ignore"):
                    found[:, i] = self._numbers(name, columns[name])
            wrong = ~np.isfinite(found) & ~(np.isnan(found) & may_miss)
            if wrong.any():
                row, column = np.argwhere(wrong)[0]
                name = numbers[column]
                # Not found[row, column]: what was too large for float32 has been lost there.
                value = float(self._numbers(name, columns[name])[row])
                self._refuse(start + int(row), name, _fault_of_number(value))
            coded = {name: self._words(columns[name]) for name in words}
            for name, column_words in coded.items():
                self._check_words(name, column_words, words[name], start)
            yield Batch(found, coded, record)
            start += len(found)

    def _check_words(self, name: str, words: Words, allowed: Collection[str], start: int) -> None:
        faults = [_fault_of_word(value, allowed) for value in words.values]
        for row in np.flatnonzero(np.array([fault is not None for fault in faults])[words.codes]):
            self._refuse(start + int(row), name, str(faults[words.codes[row]]))

    def _refuse(self, row: int, column: str, fault: str) -> None:
        raise DataError(f"{self.path}: row {row + 1}, column {column}: {fault}")

    # What each kind of file does in its own way.

    def _open(self) -> tuple[list[str], int]:
        raise NotImplementedError

    def _batches(
        self, names: Sequence[str], numbers: Sequence[str], whole: bool
    ) -> Iterator[tuple[Mapping[str, Any], Any]]:
        """Columns by name, and the whole batch."""
        raise NotImplementedError

    def _numbers(self, name: str, column: Any) -> NDArray[Any]:
        """Real numbers (N,), NaN where one is missing."""
        raise NotImplementedError

    def _words(self, column: Any) -> Words:
        raise NotImplementedError


def open_table(path: Path) -> Table:
    """The table in a .csv, .parquet or .npy; see `Table` for what is raised."""
    return {".csv": Csv, ".parquet": Parquet, ".npy": Npy}[path.suffix](path)


def shown(names: Sequence[str]) -> str:
    """So many of the names as fit into a message."""
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")


class Npy(Table):
    """An .npy array (rows, columns) of real numbers, with columns c0, c1, ..."""

    def _open(self) -> tuple[list[str], int]:
        try:
            values = np.load(self.path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise DataError(f"{self.path} is not an .npy array of numbers: {error}") from None
        if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiub":
            raise DataError(f"{self.path} does not hold an array of real numbers")
        if values.ndim != 2:
            raise DataError(f"{self.path} has shape {values.shape}; expected (rows, columns)")
        self.values = values
        return [f"c{i}" for i in range(values.shape[1])], len(values)

    def _batches(
        self, names: Sequence[str], numbers: Sequence[str], whole: bool
    ) -> Iterator[tuple[Mapping[str, Any], Any]]:
        at = [int(name.removeprefix("c")) for name in names]
        size = min(_BATCH_ROWS, max(1, _BATCH_VALUES // len(names)))
        for start in range(0, len(self.values), size):
            part = self.values[start : start + size][:, at]
            yield dict(zip(names, part.T, strict=True)), None

    def _numbers(self, name: str, column: Any) -> NDArray[Any]:
        return np.asarray(column)

    def _words(self, column: Any) -> Words:
        values, codes = np.unique(column, return_inverse=True)
        return Words(codes, values.tolist())


class _Arrow(Table):
    """What pyarrow reads."""

    def __init__(self, path: Path) -> None:
        try:
            import pyarrow as arrow
        except ImportError:
            raise MissingInputError(f"{path} is read by pyarrow; pip install pyarrow") from None
        self.arrow = arrow
        super().__init__(path)

    def _numbers(self, name: str, column: Any) -> NDArray[Any]:
        types, kind = self.arrow.types, column.type
        real = (types.is_integer, types.is_floating, types.is_decimal, types.is_boolean)
        if not any(is_one(kind) for is_one in (*real, types.is_null)):
            raise DataError(f"{self.path}: column {name} holds {kind}, not numbers")
        if types.is_boolean(kind):
            column = column.cast(self.arrow.uint8())
        # Not "safe": integers beyond 2^53 are rounded, as they would be to float32.
        doubles = column.cast(self.arrow.float64(), safe=False)
        numbers: NDArray[Any] = doubles.to_numpy(zero_copy_only=False)
        return numbers

    def _words(self, column: Any) -> Words:
        if self.arrow.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        try:
            coded = column.dictionary_encode(null_encoding="encode")
            values = coded.dictionary.to_pylist()
        except (self.arrow.ArrowNotImplementedError, ValueError):  # nanoseconds need pandas
            raise DataError(f"{self.path}: {column.type} cannot be classes") from None
        if any(isinstance(value, bytes) for value in values):
            raise DataError(f"{self.path}: {column.type} cannot be classes, text can")
        return Words(coded.indices.to_numpy(), values)


class Parquet(_Arrow):
    """A Parquet file."""

    def _open(self) -> tuple[list[str], int]:
        import pyarrow.parquet

        try:
            self.file = pyarrow.parquet.ParquetFile(self.path)
        except PermissionError:
            raise
        except (self.arrow.ArrowException, OSError) as error:
            raise DataError(f"{self.path} is not a Parquet file: {error}") from None
        return list(self.file.schema_arrow.names), self.file.metadata.num_rows

    def _batches(
        self, names: Sequence[str], numbers: Sequence[str], whole: bool
    ) -> Iterator[tuple[Mapping[str, Any], Any]]:
        wanted = None if whole else list(names)
        size = min(_BATCH_ROWS, max(1, _BATCH_VALUES // len(self.names if whole else names)))
        try:
            # One thread: how many would help depends on the container, which pyarrow does not ask.
            for batch in self.file.iter_batches(size, columns=wanted, use_threads=False):
                yield {name: batch.column(name) for name in names}, batch
        except (self.arrow.ArrowException, OSError) as error:
            raise DataError(f"{self.path} cannot be read: {error}") from None


class Csv(_Arrow):
    """A CSV file in UTF-8 with a header."""

    def _open(self) -> tuple[list[str], int]:
        with open(self.path, "rb") as file:
            head = file.read(_BLOCK)
        try:
            names = next(csv.reader(io.StringIO(head.decode("utf-8-sig", "ignore"), newline="")))
        except (StopIteration, csv.Error):
            names = []
        if not names:
            raise DataError(f"{self.path}:1: expected a header with the columns' names")
        lines = head.count(b"\n") + (not head.endswith(b"\n"))
        return names, math.ceil(self.path.stat().st_size * lines / len(head)) - 1

    def _batches(
        self, names: Sequence[str], numbers: Sequence[str], whole: bool
    ) -> Iterator[tuple[Mapping[str, Any], Any]]:
        from pyarrow import csv as arrow_csv

        text = self.arrow.string()
        types = dict.fromkeys(self.names, text)
        if not whole:
            types |= dict.fromkeys(numbers, self.arrow.float64())
        try:
            reader = arrow_csv.open_csv(
                self.path,
                read_options=arrow_csv.ReadOptions(use_threads=False, block_size=_BLOCK),
                parse_options=arrow_csv.ParseOptions(newlines_in_values=True),
                convert_options=arrow_csv.ConvertOptions(
                    column_types=types,
                    null_values=list(MISSING),
                    include_columns=self.names if whole else list(names),
                ),
            )
            for batch in reader:
                yield {name: batch.column(name) for name in names}, batch
        except self.arrow.ArrowInvalid as error:
            raise DataError(self._explain(numbers) or f"{self.path}: {error}") from None

    def _refuse(self, row: int, column: str, fault: str) -> None:
        raise DataError(f"{self.path}:{self._line(row)}: column {column}: {fault}")

    def _numbers(self, name: str, column: Any) -> NDArray[Any]:
        import pyarrow.compute as compute

        try:
            if self.arrow.types.is_string(column.type):  # the text as it stands was wanted
                column = compute.utf8_trim_whitespace(column)
                gone = compute.is_in(column, value_set=self.arrow.array(MISSING))
                column = compute.if_else(gone, self.arrow.scalar(None, column.type), column)
                column = column.cast(self.arrow.float64())
            return super()._numbers(name, column)
        except self.arrow.ArrowInvalid as error:
            raise DataError(self._explain([name]) or f"{self.path}: {error}") from None

    def _lines(self) -> Iterator[tuple[int, list[str]]]:
        """The first line of each row, and its fields. Slow, and only for what must be explained.

        Raises:
            DataError: a row is not UTF-8, no CSV, or not as long as the header.
        """
        line, header = 1, True
        with open(self.path, "rb") as file:
            reader = csv.reader((raw.decode("utf-8-sig") for raw in file), strict=True)
            try:
                for fields in reader:
                    if fields and len(fields) != len(self.names):
                        reason = f"{len(fields)} fields, and the header has {len(self.names)}"
                        raise DataError(f"{self.path}:{line}: {reason}")
                    if fields and not header:
                        yield line, fields
                    line, header = reader.line_num + 1, False
            except UnicodeDecodeError:
                raise DataError(f"{self.path}:{reader.line_num + 1}: not UTF-8 text") from None
            except csv.Error as error:
                raise DataError(f"{self.path}:{line}: not CSV: {error}") from None

    def _line(self, row: int) -> int:
        return next(line for i, (line, _) in enumerate(self._lines()) if i == row)

    def _explain(self, numbers: Sequence[str]) -> str | None:
        """Where and why pyarrow gave up, if that is seen."""
        place = {name: i for i, name in enumerate(self.names)}
        at = {name: place[name] for name in numbers}
        for line, fields in self._lines():
            for name, i in at.items():
                if not _is_number(fields[i]):
                    value = repr(fields[i][:40])
                    return f"{self.path}:{line}: column {name}: expected a number, got {value}"
        return None


def _is_number(text: str) -> bool:
    try:
        float(text or "nan")
    except ValueError:
        return text in MISSING
    return "_" not in text


def _fault_of_number(value: float) -> str:
    return "the value is missing" if math.isnan(value) else f"{value:g} is too large for float32"


def _fault_of_word(value: Any, allowed: Collection[str]) -> str | None:
    if value is None or value == "" or value != value:
        return "the value is missing"
    if isinstance(value, float) and math.isinf(value):
        return f"{value:g} is not finite"
    if allowed and value not in allowed:
        return f"expected {' or '.join(allowed)}, got {value!r}"
    return None
