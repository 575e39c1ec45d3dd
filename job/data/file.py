"""Rows from a table in a file, split by the seed or by a column.

Shapes: N rows, F features, O outputs; K classes.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from job import interrupt
from job.config import MIN_TEST_ROWS, SPLITS, Data, Task
from job.data.dataset import Dataset, Split, bytes_needed
from job.errors import DataError, OutOfMemory
from job.manifest import sha256_of
from job.streams import Purpose, generator
from job.table import Table, Words, open_table, shown

MAX_CLASSES = 65_536  # as there may be outputs


def file_sha256(config: Data, memory: int) -> str:
    """The digest of the file's content, which is part of what a run is.

    Raises:
        OutOfMemory: the rows would not fit: that is said before so much is read.
        JobError: as `load_file`.
    """
    table, _ = _opened(config, memory)
    return sha256_of(table.path)


def load_file(config: Data, seed: int, memory: int, task: Task) -> Dataset:
    """Reads all rows. `memory` is the number of bytes that this process may use.

    Raises:
        MissingInputError: there is no file, or the library that reads it is missing.
        NoPermission: the file may not be read.
        DataError: it is malformed, or not what the configuration says.
        OutOfMemory: the rows and their copies would not fit.
        Interrupted: a signal has come.
    """
    table, features = _opened(config, memory)
    targets = [] if task == "classification" else list(config.target)
    words: dict[str, Sequence[str]] = {} if targets else {config.target[0]: ()}
    if config.split_by is not None:
        words[config.split_by] = SPLITS
    blocks = []
    codings = {name: _Coding() for name in words}
    missing = features if config.missing == "mean" else ()
    for batch in table.read([*features, *targets], words, missing=missing):
        interrupt.check()
        blocks.append(batch.numbers)
        for name, coding in codings.items():
            coding.add(batch.words[name])
    digest = sha256_of(table.path)
    if config.sha256 not in (None, digest):
        raise DataError(
            f"{table.path} is not the file whose SHA-256 is data.sha256, or it changed meanwhile"
        )
    if not blocks:
        raise DataError(f"{table.path} has no rows")
    order, sizes = _split(config, seed, sum(map(len, blocks)), codings)
    x, y = _in_order(blocks, order, len(features))
    for name, column in zip(features, x[: sizes[0]].T, strict=True):
        if np.isnan(column).all():
            raise DataError(f"{table.path}: column {name} has no value in the training rows")
    classes: list[Any] = []
    if not targets:
        codes, classes = codings[config.target[0]].sorted()
        y = codes[order, None].astype(np.float32)
        if not 2 <= len(classes) <= MAX_CLASSES:
            raise DataError(
                f"{table.path}: column {config.target[0]} has {len(classes)} classes, not 2 to "
                f"{MAX_CLASSES}; for numbers choose the loss mse, mae or huber"
            )
    rows = Split(x, y, None)
    training, validation, test = sizes
    return Dataset(
        training=rows[:training],
        validation=rows[training : training + validation],
        test=rows[-test:],
        rows=len(x),
        sha256=digest,
        floor={},
        stds={},
        features=features,
        targets=list(config.target),
        classes=classes,
    )


def _opened(config: Data, memory: int) -> tuple[Table, list[str]]:
    """The table, whose rows would fit, and the features' names."""
    assert config.path is not None
    table = open_table(Path(config.path))
    others = {*config.target, config.split_by}
    features = list(config.columns or [name for name in table.names if name not in others])
    table.require([*config.target, *features, *filter(None, [config.split_by])])
    if not features:
        raise DataError(f"{table.path} has no column besides {shown(config.target)} to learn from")
    columns = len(features) + len(config.target)
    needed = bytes_needed(table.rows, table.rows, len(features), len(config.target))
    if needed > memory:
        raise OutOfMemory(
            f"about {table.rows} rows of {columns} columns in {table.path} need "
            f"{needed / 2**30:.1f} GiB and {memory / 2**30:.1f} GiB may be used; "
            f"give fewer rows, or fewer data.columns, or raise the memory limit"
        )
    return table, features


def _split(
    config: Data, seed: int, n: int, codings: dict[str, "_Coding"]
) -> tuple[NDArray[np.intp], tuple[int, int, int]]:
    """The rows in the order training, validation, test, and how many are in each."""
    if config.split_by is None:
        order = generator(seed, Purpose.SPLIT, 0).permutation(n)
        training, validation, test = config.split(n)
        more = "raise data.validation or data.test, or give more rows"
    else:
        codes, values = codings[config.split_by].sorted()
        names = [SPLITS.index(value) for value in values]
        split = np.array(names, np.intp)[codes]
        order = np.argsort(split, kind="stable")
        training, validation, test = np.bincount(split, minlength=3).tolist()
        more = f"mark more rows in {config.split_by}"
    if min(training, validation) < 1 or test < MIN_TEST_ROWS:
        raise DataError(
            f"{config.path} gives {training} rows to train on, {validation} to validate and {test} "
            f"to test, which must be 1, 1 and {MIN_TEST_ROWS} at least; {more}"
        )
    return order, (training, validation, test)


def _in_order(
    blocks: list[NDArray[np.float32]], order: NDArray[np.intp], features: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """x (N, F) and the other columns of all blocks, the row order[i] as row i; empties the list,
    so that no third copy is ever held."""
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    x = np.empty((len(order), features), np.float32)
    y = np.empty((len(order), blocks[0].shape[1] - features), np.float32)
    end = len(order)
    while blocks:
        block = blocks.pop()
        here = place[end - len(block) : end]
        x[here], y[here] = block[:, :features], block[:, features:]
        end -= len(block)
    return x, y


class _Coding:
    """A column of anything as it comes in batches, each value by one number."""

    def __init__(self) -> None:
        self.numbers: dict[Any, int] = {}
        self.codes: list[NDArray[np.intp]] = []

    def add(self, words: Words) -> None:
        numbers = [self.numbers.setdefault(v, len(self.numbers)) for v in words.values]
        self.codes.append(np.array(numbers, np.intp)[words.codes])

    def sorted(self) -> tuple[NDArray[np.intp], list[Any]]:
        """codes (N,) into the values, in their order, as JSON knows them.

        Texts that are all integers, as those of a CSV file are, count as integers.
        """
        found = list(self.numbers)
        if all(isinstance(v, str) and re.fullmatch("0|-?[1-9][0-9]{0,17}", v) for v in found):
            values: list[Any] = [int(v) for v in found]
        else:
            values = [v if isinstance(v, bool | int | float) else str(v) for v in found]
        order = sorted(range(len(values)), key=values.__getitem__)
        rank = np.empty(len(values), np.intp)
        rank[order] = np.arange(len(values))
        return rank[np.concatenate(self.codes)], [values[i] for i in order]
