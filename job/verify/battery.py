"""The inputs that every file is run with, made from the golden rows alone.

So `verify DIR` on a published folder runs exactly what ran before publishing.
Shapes: N rows, F features, G golden rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from job.errors import ExportMismatch

Float32 = NDArray[np.float32]

# Multipliers of the golden rows, to where a sum of squares would overflow. Mirrored too: where all
# data is positive, nothing else would tell x from its magnitude.
SCALES = (1e-30, 1e-12, 1e-3, -1.0, 1e3, 1e12, 1e30)
# Hardly different from the mean of the rows, somewhat outside of what was trained on, and where
# every activation and softmax is saturated.
SPREADS = (1e-4, 3.0, 1e9)
# Below 2^-126, float32's smallest normal number.
SUBNORMAL = 1e-40
# Columns that are set to NaN or infinity, one at a time.
MAX_COLUMNS = 64
# The largest batch that is run, and values of one layer that a batch may have: 64 MiB.
MAX_BATCH = 65_536
MAX_VALUES = 2**24


@dataclass(frozen=True)
class Case:
    """One input x (N, F) and the class of inputs that it stands for."""

    name: str
    x: Float32
    complete: bool = False  # ordinary rows: every answer must be a number, none is excused
    golden_rows: NDArray[np.intp] | None = None  # (N,): which of the golden rows they are


def cases(golden: Float32, batches: Sequence[int]) -> list[Case]:
    """All inputs for golden rows `golden` (G, F): every batch size, then every hard input.

    Batches larger than G repeat rows. The empty batch is one of the cases.

    Raises:
        ExportMismatch: there are no golden rows, so nothing could be shown with them.
    """
    if len(golden) == 0:
        raise ExportMismatch("there are no golden rows to verify with")

    def ordinary(name: str, rows: NDArray[np.intp]) -> Case:
        return Case(name, golden[rows], complete=True, golden_rows=rows)

    every = np.arange(len(golden))
    found = [ordinary(f"held-out rows, batch {n}", np.arange(n) % len(golden)) for n in batches]
    found.append(ordinary("permuted rows", np.roll(every[::-1], len(golden) // 3)))
    found.append(ordinary("duplicated rows", np.repeat(every, 2)))
    some = golden[np.arange(7) % len(golden)]
    found.append(Case("constant columns", _constant_columns(some), complete=True))
    found += [Case(f"spread by {s:g}", _spread(golden, s)) for s in SPREADS]
    found.append(Case("empty batch", golden[:0]))
    found.append(Case("zeros", np.zeros_like(some), complete=True))
    found.append(Case("subnormal numbers", _of_magnitude(some, SUBNORMAL)))
    with np.errstate(over="ignore", under="ignore"):
        found += [Case(f"scale {s:g}", some * np.float32(s)) for s in SCALES]
    found.append(Case("NaN in one column", _one_column(golden, np.nan)))
    found.append(Case("+Inf in one column", _one_column(golden, np.inf)))
    found.append(Case("-Inf in one column", _one_column(golden, -np.inf)))
    found.append(Case("all NaN", np.full_like(some, np.nan)))
    return found


def _constant_columns(rows: Float32) -> Float32:
    """Every second column has one value in all rows."""
    x = rows.copy()
    x[:, ::2] = x[0, ::2]
    return x


def _spread(rows: Float32, factor: float) -> Float32:
    """`factor` times as far from the mean of their column, NaN apart."""
    there = np.maximum(np.isfinite(rows).sum(axis=0), 1)
    mean = np.nansum(rows, axis=0, dtype=np.float64) / there
    with np.errstate(over="ignore"):
        x: Float32 = (mean + factor * (rows - mean)).astype(np.float32)
    return x


def _of_magnitude(rows: Float32, size: float) -> Float32:
    """`rows` scaled so that the largest value is `size`, NaN apart."""
    exact = rows.astype(np.float64)
    largest = np.nan_to_num(np.abs(exact)).max()
    return (exact * (size / largest if largest else 1.0)).astype(np.float32)


def _one_column(golden: Float32, value: float) -> Float32:
    """Row i has `value` in column i; further rows are untouched, to see that they stay so."""
    columns = min(golden.shape[1], MAX_COLUMNS)
    x: Float32 = golden[np.arange(columns + 3) % len(golden)]
    x[np.arange(columns), np.arange(columns)] = value
    return x
