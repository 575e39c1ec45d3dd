"""The inputs that every file is run with, made from the golden rows alone.

So `verify DIR` on a published folder runs exactly what ran before publishing.
Shapes: N rows, F features.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from job.errors import ExportMismatch

Float32 = NDArray[np.float32]

# Multipliers of the golden rows: from subnormal numbers to where a sum of squares would overflow.
# Mirrored too: where all data is positive, nothing else would tell x from its magnitude.
SCALES = (1e-40, 1e-30, 1e-12, 1e-3, -1.0, 1e3, 1e12, 1e30)
# Columns that are set to NaN or infinity, one at a time.
MAX_COLUMNS = 64


@dataclass(frozen=True)
class Case:
    """One input x (N, F) and the class of inputs that it stands for."""

    name: str
    x: Float32
    complete: bool = False  # ordinary rows: every answer must be a number, none is excused


def cases(golden: Float32, batches: Sequence[int]) -> list[Case]:
    """All inputs for golden rows `golden` (G, F): every batch size, then every hard input.

    Batches larger than G repeat rows. The empty batch is one of the cases.

    Raises:
        ExportMismatch: there are no golden rows, so nothing could be shown with them.
    """
    if len(golden) == 0:
        raise ExportMismatch("there are no golden rows to verify with")
    found = [Case(f"held-out rows, batch {n}", _first(golden, n), complete=True) for n in batches]
    some = _first(golden, 7)
    found.append(Case("empty batch", golden[:0]))
    found.append(Case("zeros", np.zeros_like(some), complete=True))
    with np.errstate(over="ignore", under="ignore"):
        found += [Case(f"scale {s:g}", some * np.float32(s)) for s in SCALES]
    found.append(Case("NaN in one column", _one_column(golden, np.nan)))
    found.append(Case("+Inf in one column", _one_column(golden, np.inf)))
    found.append(Case("-Inf in one column", _one_column(golden, -np.inf)))
    found.append(Case("all NaN", np.full_like(some, np.nan)))
    return found


def _first(golden: Float32, n: int) -> Float32:
    return np.ascontiguousarray(golden[np.arange(n) % len(golden)])


def _one_column(golden: Float32, value: float) -> Float32:
    """Row i has `value` in column i; further rows are untouched, to see that they stay so."""
    columns = min(golden.shape[1], MAX_COLUMNS)
    x = _first(golden, columns + 3)
    x[np.arange(columns), np.arange(columns)] = value
    return x
