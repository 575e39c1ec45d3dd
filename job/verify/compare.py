"""Measures one answer against the oracle into a record, and judges the record afterwards.

Fails closed: a comparison passes only if everything that must hold was seen to hold. Shapes: N
rows, O outputs.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from job.verify.battery import Case
from job.verify.oracle import Answer

# How many times the RMS error may exceed what chance gives. Where all rows are alike, the ratio is
# in the worst case Student's t with oracle.SAMPLES degrees of freedom: beyond 16 in 3 of 10^11
# cases. Where they are not, it stays near 1 or below.
NOISE_LIMIT = 16.0


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
    noise_used: float = 0.0  # rms_error / (NOISE_LIMIT * RMS of the noise); at most 1 to pass
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
    fault = _wrong_structure(got, expected)
    if fault is not None:
        return Comparison(artifact, engine, case.name, rows, fault=fault)
    assert isinstance(got, np.ndarray)
    measured = _measured(got, expected)
    fault = _wrong_values(case, got, expected, measured)
    return Comparison(artifact, engine, case.name, rows, fault=fault, **measured)


def _wrong_structure(got: object, expected: Answer) -> str | None:
    if not isinstance(got, np.ndarray):
        return f"the answer is a {type(got).__name__}, not one tensor"
    if got.dtype != np.float32:
        return f"the answer has type {got.dtype}, not float32"
    if got.shape != expected.value.shape:
        return f"the answer has shape {got.shape}, not {expected.value.shape}"
    if got.size == 0 and len(expected.value) > 0:
        return "there is nothing to compare"
    return None


def _measured(got: NDArray[np.float32], expected: Answer) -> dict[str, Any]:
    """How far the numbers are apart where a number is demanded and was given."""
    demanded = np.isfinite(expected.bound)
    numbers = demanded & np.isfinite(expected.value) & np.isfinite(got)
    if not numbers.any():
        return {"compared": int(demanded.sum())}
    difference = _difference(got, expected)
    used = np.where(numbers, difference / expected.bound, -1.0)
    noise = np.broadcast_to(expected.noise, got.shape)[numbers]
    rms_error = _rms(difference[numbers])
    return {
        "compared": int(demanded.sum()),
        "max_error": float(difference[numbers].max()),
        "rms_error": rms_error,
        "bound_used": float(used.max()),
        "noise_used": rms_error / (NOISE_LIMIT * _rms(noise)),
        "worst_row": int(used.max(axis=1).argmax()),
    }


def _wrong_values(
    case: Case, got: NDArray[np.float32], expected: Answer, measured: dict[str, Any]
) -> str | None:
    value, bound = expected.value, expected.bound
    demanded = np.isfinite(bound)
    finite = demanded & np.isfinite(value)
    same = (np.isnan(got) & np.isnan(value)) | (got == value)
    same |= expected.vague[:, None] & ~np.isfinite(got)
    wrong = demanded & ~finite & ~same
    if wrong.any():
        at = _first(wrong)
        return f"row {at[0]} is {got[at]}, not {value[at]}"
    # Written so that NaN fails: a NaN difference is not within any bound.
    within = np.isfinite(got) & (_difference(got, expected) <= bound)
    wrong = finite & ~within
    if wrong.any():
        at = _first(wrong)
        return (
            f"{int(wrong.sum())} of {got.size} answers are outside the bound, the first in row "
            f"{at[0]}: {got[at]:.9g}, not {value[at]:.9g} within {bound[at]:.3g}"
        )
    if case.complete and not demanded.all():
        return "the model may overflow float32 on ordinary rows"
    if case.complete and not finite.all():
        return "the model's answers to ordinary rows are not finite"
    if not measured.get("noise_used", 0.0) <= 1:
        return (
            f"the RMS error is {measured['rms_error']:.3g}, "
            f"{measured['noise_used']:.3g} times what rounding can give"
        )
    return None


def _difference(got: NDArray[np.float32], expected: Answer) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):
        return np.abs(got.astype(np.float64) - expected.value)


def _rms(values: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def _first(wrong: NDArray[np.bool_]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argwhere(wrong)[0])
