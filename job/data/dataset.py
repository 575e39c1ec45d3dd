"""Rows in three splits; those of the synthetic kinds made in fixed chunks.

Shapes: N rows, F features, O outputs; K classes.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from job import interrupt
from job.config import MIN_TEST_ROWS, Data
from job.data.synthetic import KINDS
from job.errors import OutOfMemory
from job.streams import Purpose, generator

# Values of x in one stream of random numbers, and rows at the most. Part of what a seed means: a
# change changes the data.
CHUNK_VALUES = 2**20
CHUNK_ROWS = 2**16

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Split:
    """Some of the rows: x (N, F), y (N, O) and, where it is known, the truth f(x) (N, O), in the
    target's units.

    For classes, y (N, 1) is the class's number and the truth (N, K) its probabilities.
    """

    x: Float32
    y: Float32
    truth: Float64 | None

    def __getitem__(self, rows: slice) -> "Split":
        truth = None if self.truth is None else self.truth[rows]
        return Split(self.x[rows], self.y[rows], truth)


@dataclass(frozen=True)
class Dataset:
    """All rows in three splits, with what is known about them."""

    training: Split
    validation: Split
    test: Split
    rows: int
    sha256: str  # of the file, or of all rows by chunks, x before y, little-endian float32
    floor: dict[str, float]  # metric -> its best reachable value, where that is known
    stds: dict[str, float]  # a loss at its floor -> its standard deviation from row to row
    features: list[str]
    targets: list[str]  # the columns of y; none for synthetic classes
    classes: list[Any]  # for classification

    @property
    def golden_input(self) -> Float32:
        """The first test rows (G, F): enough for most batches, fewer where rows are wide. What is
        missing is filled with the training rows' mean, since goldens are finite."""
        rows = self.test.x[: max(MIN_TEST_ROWS, min(256, 2**20 // self.test.x.shape[1]))]
        gone = np.isnan(rows)
        return np.where(gone, np.nanmean(self.training.x, axis=0), rows) if gone.any() else rows


def make_rows(config: Data, seed: int, memory: int) -> Dataset:
    """Makes all rows of a synthetic kind. `memory` is the bytes that this process may use.

    Raises:
        OutOfMemory: the rows and their copies would not fit.
        Interrupted: a signal has come.
    """
    _require_memory(config, memory)
    x = np.empty((config.samples, config.features), np.float32)
    y = np.empty((config.samples, config.outputs), np.float32)
    truth = np.empty((config.samples, config.class_count or config.outputs), np.float64)
    digest = hashlib.sha256()
    for start, part in chunks(config, seed, 0, config.samples):
        interrupt.check()
        here = slice(start, start + len(part.x))
        x[here], y[here], truth[here] = part.x, part.y, part.truth
        digest.update(part.x.astype("<f4", copy=False).data)
        digest.update(part.y.astype("<f4", copy=False).data)

    rows = Split(x, y, truth)
    training, validation, test = config.split(config.samples)
    floor = KINDS[config.kind].floor(config)
    return Dataset(
        training=rows[:training],
        validation=rows[training : training + validation],
        test=rows[-test:],
        rows=config.samples,
        sha256=digest.hexdigest(),
        floor=floor.metrics,
        stds=floor.stds,
        features=[f"x{i}" for i in range(config.features)],
        targets=[]
        if config.class_count
        else ["y"]
        if config.outputs == 1
        else [f"y{i}" for i in range(config.outputs)],
        classes=list(range(config.class_count)),
    )


def chunks(config: Data, seed: int, start: int, stop: int) -> Iterator[tuple[int, Split]]:
    """Rows [start, stop) as (first row, rows), a chunk at a time; any range gives the same rows."""
    size = chunk_rows(max(config.features, config.outputs, config.class_count))
    for chunk in range(start // size, -(-stop // size)):
        first = chunk * size
        draw = generator(seed, Purpose.DATA, chunk)
        # A chunk is always drawn whole, so that a row does not depend on how many there are.
        x, y, truth = KINDS[config.kind].draw(draw, size, config)
        keep = slice(max(start - first, 0), min(stop - first, size))
        rows = Split(x.astype(np.float32), y.astype(np.float32), truth)
        yield first + keep.start, rows[keep]


def chunk_rows(width: int) -> int:
    """Rows that are drawn together: fewer where rows are wide."""
    return min(CHUNK_ROWS, max(1, CHUNK_VALUES // width))


def bytes_needed(rows: int, training: int, features: int, targets: int, truth: int = 0) -> int:
    """What a process takes that trains on so many of the rows: all of them in float32, their truths
    in float64, of those to train on a standardised copy, one packed for the steps and their
    numbers; and as much as torch and the other libraries take.

    docs/performance.md has what was measured.
    """
    columns = features + targets
    return 2**28 + rows * (4 * columns + 8 * truth) + training * (4 * columns + 4 * columns + 4 + 8)


def _require_memory(config: Data, memory: int) -> None:
    needed = bytes_needed(
        config.samples,
        config.split(config.samples)[0],
        config.features,
        config.outputs,
        config.class_count or config.outputs,
    )
    if needed > memory:
        raise OutOfMemory(
            f"{config.samples} rows of {config.features} features need about "
            f"{needed / 2**30:.1f} GiB and {memory / 2**30:.1f} GiB may be used; "
            f"lower data.samples or data.features, or raise the memory limit"
        )
