"""Measures one answer against the oracle into a record, and judges the record by named rules.

Fails closed: a rule holds only if what it demands was seen to hold. Shapes: N rows, O outputs.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from job.verify.battery import Case
from job.verify.oracle import TINY, Answer, U

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

# How many times an error may exceed what chance gives. Where all rows are alike, the ratio is in
# the worst case Student's t with oracle.SAMPLES degrees of freedom: beyond 16 in 3 of 10^11
# cases. Where they are not, it stays near 1 or below.
NOISE_LIMIT = 16.0
# How many times the trained model's own RMS error an engine's may be. Over 120 faithful random
# models in all engines and batches the largest was 3.4.
TORCH_LIMIT = 16.0


@dataclass(frozen=True)
class Comparison:
    """One artifact in one engine on one input class, and each rule that it broke with the reason.

    Errors are |answer - oracle| over the elements where a number is demanded and was given.
    """

    artifact: str
    engine: str
    case: str
    rows: int
    compared: int = 0  # elements that were compared as numbers or as non-finite values
    max_error: float = 0.0  # target's units
    max_relative_error: float = 0.0  # where the oracle's value is a normal float32 number
    max_ulps: float = 0.0  # of float32, at the oracle's value
    rms_error: float = 0.0
    bound_used: float = 0.0  # largest error / bound; at most 1 to pass
    noise_used: float = 0.0  # RMS of error / noise, over NOISE_LIMIT; at most 1 to pass
    torch_used: float = 0.0  # the same over TORCH_LIMIT and the trained model's own; as well
    flips: int = 0  # rows of classes whose largest probability is another's
    flip_margin: float = 0.0  # the largest distance, by the oracle, of two that were exchanged
    worst_row: int | None = None
    faults: Mapping[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return not self.faults

    @property
    def fault(self) -> str | None:
        """The reason of the first rule that is broken; structure comes before values."""
        return next(iter(self.faults.values()), None)

    def as_json(self) -> dict[str, Any]:
        """The record with its verdict, as written to verification.json."""
        return {**asdict(self), "verdict": "passed" if self.passed else "failed"}


def compare(
    artifact: str,
    engine: str,
    case: Case,
    got: object,
    expected: Answer,
    torch_error: float | None = None,
) -> Comparison:
    """Compares `got` with what it must be, (N, O) float32; the structure before any value.

    `torch_error` is `relative_error` of the trained model's own answers; ordinary rows are held to
    it where it is given.
    """
    rows = len(expected.value)
    fault = _structure(got, expected)
    if fault is not None:
        return Comparison(artifact, engine, case.name, rows, faults={"structure": fault})
    assert isinstance(got, np.ndarray)
    measured = _measured(got, expected, torch_error if case.complete else None)
    judged = {
        "finite": _finite(got, expected),
        "bound": _bound(got, expected),
        "noise": _excess(measured, "noise_used", 1, "what rounding can give"),
        "torch": _excess(measured, "torch_used", TORCH_LIMIT, "the trained model's own"),
        "decisions": _decisions(got, expected),
        "ordinary": _ordinary(expected) if case.complete else None,
    }
    faults = {rule: reason for rule, reason in judged.items() if reason is not None}
    return Comparison(artifact, engine, case.name, rows, faults=faults, **measured)


def relative_error(got: Float32, expected: Answer) -> float:
    """The RMS error in units of the noise, but never less than float32's rounding of the answers.

    0 where there is no number to compare.
    """
    numbers = _numbers(got, expected)
    if not numbers.any():
        return 0.0
    noise = expected.noise[numbers]
    error = _rms(_difference(got, expected)[numbers] / noise)
    return max(error, _rms(U * np.abs(expected.value[numbers]) / noise))


def _structure(got: object, expected: Answer) -> str | None:
    if not isinstance(got, np.ndarray):
        return f"the answer is a {type(got).__name__}, not one tensor"
    if got.dtype != np.float32:
        return f"the answer has type {got.dtype}, not float32"
    if got.shape != expected.value.shape:
        return f"the answer has shape {got.shape}, not {expected.value.shape}"
    if got.size == 0 and len(expected.value) > 0:
        return "there is nothing to compare"
    return None


def _measured(got: Float32, expected: Answer, torch_error: float | None) -> dict[str, Any]:
    numbers = _numbers(got, expected)
    compared = int(np.isfinite(expected.bound).sum())
    if not numbers.any():
        return {"compared": compared}
    difference = _difference(got, expected)
    value = np.abs(expected.value)
    with np.errstate(all="ignore"):
        relative = np.where(numbers & (value >= TINY), difference / value, 0.0)
        ulps = np.where(numbers, difference / np.spacing(value.astype(np.float32)), 0.0)
        used = np.where(numbers, difference / expected.bound, -1.0)
    noises = _rms(difference[numbers] / expected.noise[numbers])
    margins = _margins(got, expected)[0]
    return {
        "compared": compared,
        "max_error": float(difference[numbers].max()),
        "max_relative_error": float(relative.max()),
        "max_ulps": float(ulps.max()),
        "rms_error": _rms(difference[numbers]),
        "bound_used": float(used.max()),
        "noise_used": noises / NOISE_LIMIT,
        "torch_used": noises / (TORCH_LIMIT * torch_error) if torch_error else 0.0,
        "flips": len(margins),
        "flip_margin": float(margins.max(initial=0.0)),
        "worst_row": int(used.max(axis=1).argmax()),
    }


def _finite(got: Float32, expected: Answer) -> str | None:
    """NaN for NaN and infinity for infinity."""
    value = expected.value
    same = (np.isnan(got) & np.isnan(value)) | (got == value)
    same |= expected.vague[:, None] & ~np.isfinite(got)
    wrong = np.isfinite(expected.bound) & ~np.isfinite(value) & ~same
    if not wrong.any():
        return None
    at = _first(wrong)
    return f"row {at[0]} is {got[at]:.9g}, not {value[at]:.9g}"


def _bound(got: Float32, expected: Answer) -> str | None:
    value, bound = expected.value, expected.bound
    # Written so that NaN fails: a NaN difference is not within any bound.
    within = np.isfinite(got) & (_difference(got, expected) <= bound)
    wrong = np.isfinite(bound) & np.isfinite(value) & ~within
    if not wrong.any():
        return None
    at = _first(wrong)
    return (
        f"{int(wrong.sum())} of {got.size} answers are outside the bound, the first in row "
        f"{at[0]}: {got[at]:.9g}, not {value[at]:.9g} within {bound[at]:.3g}"
    )


def _excess(measured: Mapping[str, Any], share: str, limit: float, of: str) -> str | None:
    used = measured.get(share, 0.0)
    if used <= 1:  # so that NaN fails
        return None
    return f"the RMS error {measured['rms_error']:.3g} is {used * limit:.3g} times {of}"


def _decisions(got: Float32, expected: Answer) -> str | None:
    margins, noises = _margins(got, expected)
    wrong = ~(margins <= NOISE_LIMIT * noises)
    if not wrong.any():
        return None
    return (
        f"{int(wrong.sum())} rows are of another class, by up to {margins[wrong].max():.3g} "
        f"in probability: more than rounding can exchange"
    )


def _ordinary(expected: Answer) -> str | None:
    """On ordinary rows every answer must be a number, none is excused."""
    if not np.isfinite(expected.bound).all():
        return "the model may overflow float32 on ordinary rows"
    if not np.isfinite(expected.value).all():
        return "the model's answers to ordinary rows are not finite"
    return None


def _margins(got: Float32, expected: Answer) -> tuple[Float64, Float64]:
    """For each row whose class is another: p of the right one less p of the other, by the oracle,
    and the noise of that difference."""
    nothing = np.zeros(0)
    if not expected.classes or got.size == 0:
        return nothing, nothing
    sure = _numbers(got, expected).all(axis=1)
    value, noise = expected.value[sure], expected.noise[sure]
    right, other = value.argmax(axis=1), got[sure].argmax(axis=1)
    flipped = np.flatnonzero(right != other)
    right, other = right[flipped], other[flipped]
    margins = value[flipped, right] - value[flipped, other]
    return margins, np.hypot(noise[flipped, right], noise[flipped, other])


def _numbers(got: Float32, expected: Answer) -> NDArray[np.bool_]:
    """Where a number is demanded and was given."""
    return np.isfinite(expected.bound) & np.isfinite(expected.value) & np.isfinite(got)


def _difference(got: Float32, expected: Answer) -> Float64:
    with np.errstate(invalid="ignore"):
        return np.abs(got.astype(np.float64) - expected.value)


def _rms(values: Float64) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def _first(wrong: NDArray[np.bool_]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argwhere(wrong)[0])
