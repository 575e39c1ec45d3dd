"""Synthetic kinds: each draws its rows and knows its own truth f(x).

Shapes: n rows, F features, O outputs, K classes. All in float64; the caller casts.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from job.config import Data
from job.streams import Purpose, generator

Array = NDArray[np.float64]

SMALLEST = 5e-324  # of the positive float64 numbers


class Rows(NamedTuple):
    """x (n, F); y (n, O), the targets, or (n, 1), the class's number; truth (n, O) or (n, K)."""

    x: Array
    y: Array
    truth: Array


class Floor(NamedTuple):
    """What the truth itself reaches, and so the best that any model can."""

    metrics: dict[str, float]
    stds: dict[str, float]  # of a loss: its standard deviation from row to row


@dataclass(frozen=True)
class Kind:
    """`draw` makes n rows; `floor` is known by construction."""

    draw: Callable[[np.random.Generator, int, Data], Rows]
    floor: Callable[[Data], Floor]


def _regression(
    function: Callable[[np.random.Generator, int, Data], tuple[Array, Array]],
) -> Kind:
    """y = f(x) + noise e with e ~ N(0, 1): the best means of (y - p)^2 and |y - p| are noise^2 and
    sqrt(2 / pi) noise, their standard deviations sqrt(2) noise^2 and sqrt(1 - 2 / pi) noise; those
    of a row's mean over O outputs, whose e are independent, are smaller by sqrt(O)."""

    def draw(generator: np.random.Generator, n: int, config: Data) -> Rows:
        x, truth = function(generator, n, config)
        return Rows(x, truth + config.noise * generator.standard_normal(truth.shape), truth)

    def floor(config: Data) -> Floor:
        noise, root = config.noise, math.sqrt(config.outputs)
        return Floor(
            {"mse": noise**2, "mae": math.sqrt(2 / math.pi) * noise},
            {
                "mse": math.sqrt(2) * noise**2 / root,
                "mae": math.sqrt(1 - 2 / math.pi) * noise / root,
            },
        )

    return Kind(draw, floor)


def linear(draw: np.random.Generator, n: int, features: int, outputs: int) -> tuple[Array, Array]:
    """x (n, F) standard normal, f(x) (n, O): output k, from 0, is 1 + k + the sum over i from 0 of
    x_{i + k} / (i + 1), where the features go round."""
    x = draw.standard_normal((n, features))
    weights = np.arange(1, features + 1)
    f = [1 + k + (np.roll(x, -k, axis=1) / weights).sum(axis=1) for k in range(outputs)]
    return x, np.stack(f, axis=1)


def friedman1(draw: np.random.Generator, n: int, features: int) -> tuple[Array, Array]:
    """x (n, F) uniform in [0, 1), f(x) (n, 1) = 10 sin(pi x0 x1) + 20 (x2 - 1/2)^2 + 10 x3 + 5 x4.

    Source: J. H. Friedman, Multivariate Adaptive Regression Splines, Annals of Statistics 19
    (1991), section 4.3. Features from the sixth on do not matter.
    """
    x = draw.random((n, features))
    f = 10 * np.sin(np.pi * x[:, 0] * x[:, 1])
    f += 20 * np.square(x[:, 2] - 0.5) + 10 * x[:, 3] + 5 * x[:, 4]
    return x, f[:, None]


def friedman2(draw: np.random.Generator, n: int, features: int) -> tuple[Array, Array]:
    """The impedance of a circuit of a resistor, an inductor and a capacitor in series:
    f(x) (n, 1) = sqrt(x0^2 + (x1 x2 - 1 / (x1 x3))^2), x (n, F) as in `_circuits`.

    Source: as `friedman1`, with the ranges of L. Breiman, Bagging Predictors, Machine Learning 24
    (1996). f has a standard deviation of about 379.
    """
    x, reactance = _circuits(draw, n, features)
    return x, np.hypot(x[:, 0], reactance)[:, None]


def friedman3(draw: np.random.Generator, n: int, features: int) -> tuple[Array, Array]:
    """The phase of the same circuit: f(x) (n, 1) = arctan((x1 x2 - 1 / (x1 x3)) / x0).

    f has a standard deviation of about 0.32.
    """
    x, reactance = _circuits(draw, n, features)
    return x, np.arctan2(reactance, x[:, 0])[:, None]  # as arctan(a / b) for b >= 0


def _circuits(draw: np.random.Generator, n: int, features: int) -> tuple[Array, Array]:
    """x (n, F), each column uniform: the resistance x0 from 0 to 100, the angular frequency x1 from
    40 pi to 560 pi, the inductance x2 from 0 to 1, the capacity x3 from 1 to 11, the others, which
    do not matter, from 0 to 1; and the reactance x1 x2 - 1 / (x1 x3) (n,)."""
    x = draw.random((n, features))
    x[:, :4] = x[:, :4] * [100, 520 * np.pi, 1, 10] + [0, 40 * np.pi, 0, 1]
    return x, x[:, 1] * x[:, 2] - 1 / (x[:, 1] * x[:, 3])


def teacher(
    draw: np.random.Generator, n: int, features: int, outputs: int, width: int, seed: int
) -> tuple[Array, Array]:
    """x (n, F) standard normal, f(x) (n, O) = relu(x A + b) C, a random network of `width` hidden
    units W, so that a model of one such layer can be it.

    A (F, W) ~ N(0, 1 / F), b (W,) ~ N(0, 1) and C (W, O) ~ N(0, 1 / W), drawn from `seed` alone.
    """
    weights = generator(seed, Purpose.TEACHER, 0)
    a = weights.standard_normal((features, width)) / math.sqrt(features)
    b = weights.standard_normal(width)
    c = weights.standard_normal((width, outputs)) / math.sqrt(width)
    x = draw.standard_normal((n, features))
    return x, np.maximum(x @ a + b, 0) @ c


def noise(draw: np.random.Generator, n: int, features: int, outputs: int) -> tuple[Array, Array]:
    """x (n, F) standard normal, f(x) (n, O) = 0: y has nothing to do with x."""
    return draw.standard_normal((n, features)), np.zeros((n, outputs))


def gaussians(draw: np.random.Generator, n: int, features: int, noise: float, classes: int) -> Rows:
    """K classes of equal share on a line: x (n, F) = c_y m + noise e, e ~ N(0, I), with centres
    c_y = 2 y - (K - 1), which are 2 apart.

    m = (1, ..., 1) / sqrt(F) has length 1. By Bayes' rule class k has the log probability
    c_k (x . m - c_k / 2) / noise^2 but for what all classes share; so the truth (n, K) is the
    softmax of these.
    """
    m = np.full(features, 1 / math.sqrt(features))
    y = draw.integers(0, classes, (n, 1)).astype(np.float64)
    x = (2 * y - (classes - 1)) * m + noise * draw.standard_normal((n, features))
    return Rows(x, y, np.exp(_log_posterior(x @ m, noise, classes)))


def _log_posterior(t: Array, noise: float, classes: int) -> Array:
    """log P(class | x . m = t) (..., K) for t (...)."""
    centres = 2 * np.arange(classes) - (classes - 1.0)
    score = centres * (t[..., None] - centres / 2)
    score -= score.max(axis=-1, keepdims=True)
    with np.errstate(over="ignore"):
        score /= max(noise**2, SMALLEST)  # without noise: 0 for the nearest, else -infinity
    logs: Array = score - np.log(np.exp(score).sum(axis=-1, keepdims=True))
    return logs


def _gaussians_floor(noise: float, classes: int) -> Floor:
    """A row of class k has x . m = c_k + noise g, g ~ N(0, 1). The nearest centre is another one if
    noise |g| > 1, for the first and the last class on one side only: the best accuracy is
    1 - 2 (K - 1) / K Phi(-1 / noise). The truth's own log loss is -log P(k | x . m); its mean and
    square over g are integrated by the trapezoidal rule, whose error for a smooth function times
    exp(-g^2 / 2) is far below float64's rounding, and averaged over k."""
    if noise == 0:
        return Floor({"log_loss": 0.0, "accuracy": 1.0}, {"log_loss": 0.0})
    g = np.linspace(-12, 12, 4_801)
    density = np.exp(-np.square(g) / 2) / math.sqrt(2 * math.pi)
    centres = 2 * np.arange(classes) - (classes - 1.0)
    losses = [-_log_posterior(c + noise * g, noise, classes)[:, k] for k, c in enumerate(centres)]
    mean, square = (
        float(np.mean([np.trapezoid(density * loss**power, g) for loss in losses]))
        for power in (1, 2)
    )
    wrong = math.erfc(1 / (noise * math.sqrt(2))) * (classes - 1) / classes
    std = math.sqrt(max(0.0, square - mean**2))
    return Floor({"log_loss": mean, "accuracy": 1 - wrong}, {"log_loss": std})


def xor(draw: np.random.Generator, n: int, features: int, label_noise: float) -> Rows:
    """x (n, F) uniform in [-1, 1); class 1 where x0 and x1 have different signs, class 0 elsewhere,
    and each label flipped with probability p = label_noise: the truth (n, 2) is (p, 1 - p) where
    the signs differ and (1 - p, p) elsewhere."""
    x = draw.uniform(-1, 1, (n, features))
    differ = (x[:, :1] < 0) != (x[:, 1:2] < 0)
    y = differ ^ (draw.random((n, 1)) < label_noise)
    one = np.where(differ, 1 - label_noise, label_noise)
    return Rows(x, y.astype(np.float64), np.hstack([1 - one, one]))


def _xor_floor(p: float) -> Floor:
    """With p <= 1/2 the truth is right with probability 1 - p. Its log loss is -log p where the
    label was flipped and -log(1 - p) elsewhere: the mean is the entropy of p, the standard
    deviation sqrt(p (1 - p)) times the difference of the two."""
    if p == 0:
        return Floor({"log_loss": 0.0, "accuracy": 1.0}, {"log_loss": 0.0})
    flipped, kept = -math.log(p), -math.log1p(-p)
    std = math.sqrt(p * (1 - p)) * (flipped - kept)
    return Floor({"log_loss": p * flipped + (1 - p) * kept, "accuracy": 1 - p}, {"log_loss": std})


KINDS: Mapping[str, Kind] = {
    "linear": _regression(lambda draw, n, c: linear(draw, n, c.features, c.outputs)),
    "friedman1": _regression(lambda draw, n, c: friedman1(draw, n, c.features)),
    "friedman2": _regression(lambda draw, n, c: friedman2(draw, n, c.features)),
    "friedman3": _regression(lambda draw, n, c: friedman3(draw, n, c.features)),
    "teacher": _regression(
        lambda draw, n, c: teacher(draw, n, c.features, c.outputs, c.teacher.width, c.teacher.seed)
    ),
    "noise": _regression(lambda draw, n, c: noise(draw, n, c.features, c.outputs)),
    "gaussians": Kind(
        lambda draw, n, c: gaussians(draw, n, c.features, c.noise, c.classes),
        lambda c: _gaussians_floor(c.noise, c.classes),
    ),
    "xor": Kind(
        lambda draw, n, c: xor(draw, n, c.features, c.label_noise),
        lambda c: _xor_floor(c.label_noise),
    ),
}
