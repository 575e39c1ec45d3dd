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

Array = NDArray[np.float64]


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


def linear(
    draw: np.random.Generator, n: int, features: int, outputs: int = 1
) -> tuple[Array, Array]:
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


def noise(
    draw: np.random.Generator, n: int, features: int, outputs: int = 1
) -> tuple[Array, Array]:
    """x (n, F) standard normal, f(x) (n, O) = 0: y has nothing to do with x."""
    return draw.standard_normal((n, features)), np.zeros((n, outputs))


def gaussians(draw: np.random.Generator, n: int, features: int, noise: float) -> Rows:
    """Two classes of equal share around -m and +m: x (n, F) = (2 y - 1) m + noise e, e ~ N(0, I).

    m = (1, ..., 1) / sqrt(F) has length 1. By Bayes' rule the log odds of class 1 are
    z = 2 x . m / noise^2, so the truth (n, 2) is (1 / (1 + exp z), 1 / (1 + exp -z)).
    """
    m = np.full(features, 1 / math.sqrt(features))
    y = draw.integers(0, 2, (n, 1)).astype(np.float64)
    x = (2 * y - 1) * m + noise * draw.standard_normal((n, features))
    with np.errstate(divide="ignore", over="ignore"):
        z = x @ m * 2 / np.float64(noise) ** 2
    truth = np.exp(-np.logaddexp(0, np.stack([z, -z], axis=1)))
    return Rows(x, y, truth)


def _gaussians_floor(noise: float) -> Floor:
    """A row of class c has x . m = 2 c - 1 + noise g, g ~ N(0, 1): it is on the wrong side with
    probability Phi(-1 / noise), and the truth's own log loss is log(1 + exp(-s)), s = 2 (1 +
    noise g) / noise^2. Its mean and variance over g are integrated by the trapezoidal rule, whose
    error for a smooth function times exp(-g^2 / 2) is far below float64's rounding."""
    if noise == 0:
        return Floor({"log_loss": 0.0, "accuracy": 1.0}, {"log_loss": 0.0})
    g = np.linspace(-12, 12, 24_001)
    density = np.exp(-np.square(g) / 2) / math.sqrt(2 * math.pi)
    with np.errstate(divide="ignore", over="ignore"):
        loss = np.logaddexp(0, -2 * (1 + noise * g) / np.float64(noise) ** 2)
    mean, square = (float(np.trapezoid(density * loss**power, g)) for power in (1, 2))
    correct = 1 - math.erfc(1 / (noise * math.sqrt(2))) / 2
    std = math.sqrt(max(0.0, square - mean**2))
    return Floor({"log_loss": mean, "accuracy": correct}, {"log_loss": std})


KINDS: Mapping[str, Kind] = {
    "linear": _regression(lambda draw, n, c: linear(draw, n, c.features, c.outputs)),
    "friedman1": _regression(lambda draw, n, c: friedman1(draw, n, c.features)),
    "noise": _regression(lambda draw, n, c: noise(draw, n, c.features, c.outputs)),
    "gaussians": Kind(
        lambda draw, n, c: gaussians(draw, n, c.features, c.noise),
        lambda c: _gaussians_floor(c.noise),
    ),
}
