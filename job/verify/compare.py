"""Measures one answer against the oracle into a record, and judges the record afterwards.

Fails closed: a comparison passes only if everything that must hold was seen to hold. Shapes: N
rows, O outputs.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from job.verify.battery import Case
from job.verify.oracle import Answer


@dataclass(frozen=True)
class Comparison:
    """One artifact in one engine on one input class. `fault` is None if and only if it passed."""

    artifact: str
    engine: str
    case: str
    rows: int
    compared: int = 0  # elements that were compared as numbers or as non-finite values
    max_error: float = 0.0  # largest |answer - oracle|, target's units
    rms_error: float = 0.0
    bound_used: float = 0.0  # largest |answer - oracle| / bound; at most 1 to pass
    worst_row: int | None = None
    fault: str | None = None

    @property
    def passed(self) -> bool:
        return self.fault is None

    def as_json(self) -> dict[str, Any]:
        """The record with its verdict, as written to verification.json."""
        return {**asdict(self), "verdict": "passed" if self.passed else "failed"}


def compare(artifact: str, engine: str, case: Case, got: object, expected: Answer) -> Comparison:
    """Compares `got` with what it must be, (N, O) float32; the structure before any value."""
    rows = len(expected.value)

    def failed(fault: str, **measured: Any) -> Comparison:
        return Comparison(artifact, engine, case.name, rows, fault=fault, **measured)

    if not isinstance(got, np.ndarray):
        return failed(f"the answer is a {type(got).__name__}, not one tensor")
    if got.dtype != np.float32:
        return failed(f"the answer has type {got.dtype}, not float32")
    if got.shape != expected.value.shape:
        return failed(f"the answer has shape {got.shape}, not {expected.value.shape}")
    if got.size == 0 and rows > 0:
        return failed("there is nothing to compare")

    demanded = np.isfinite(expected.bound)
    finite = demanded & np.isfinite(expected.value)
    special = demanded & ~finite
    with np.errstate(invalid="ignore"):
        difference = np.abs(got.astype(np.float64) - expected.value)
    same = (np.isnan(got) & np.isnan(expected.value)) | (got == expected.value)
    same |= expected.vague[:, None] & ~np.isfinite(got)
    wrong_special = special & ~same
    # Written so that NaN fails: a NaN difference is not within any bound.
    within = np.isfinite(got) & (difference <= expected.bound)
    wrong_finite = finite & ~within

    measured: dict[str, Any] = {"compared": int(demanded.sum())}
    seen = difference[finite & np.isfinite(got)]
    if seen.size:
        used = np.where(finite & np.isfinite(got), difference / expected.bound, -1.0)
        measured |= {
            "max_error": float(seen.max()),
            "rms_error": float(np.sqrt(np.mean(np.square(seen)))),
            "bound_used": float(used.max()),
            "worst_row": int(used.max(axis=1).argmax()),
        }
    if wrong_special.any():
        at = tuple(int(i) for i in np.argwhere(wrong_special)[0])
        return failed(f"row {at[0]} is {got[at]}, not {expected.value[at]}", **measured)
    if wrong_finite.any():
        count = int(wrong_finite.sum())
        at = tuple(int(i) for i in np.argwhere(wrong_finite)[0])
        return failed(
            f"{count} of {got.size} answers are outside the bound, the first in row {at[0]}: "
            f"{got[at]:.9g}, not {expected.value[at]:.9g} within {expected.bound[at]:.3g}",
            **measured,
        )
    if case.complete and not demanded.all():
        return failed("the model may overflow float32 on ordinary rows", **measured)
    return Comparison(artifact, engine, case.name, rows, **measured)
