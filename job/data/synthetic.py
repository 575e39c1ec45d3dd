"""Synthetic kinds: each draws x and knows its own truth f(x).

Shapes: n rows, F features, O = 1 output. All in float64; the caller casts.
y = f(x) + noise * e with e ~ N(0, 1), so the best reachable MSE is noise^2.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def linear(draw: np.random.Generator, n: int, features: int) -> tuple[Array, Array]:
    """x (n, F) standard normal, f(x) (n, 1) = 1 + sum over i from 0 of x_i / (i + 1)."""
    x = draw.standard_normal((n, features))
    f = 1 + (x / np.arange(1, features + 1)).sum(axis=1)
    return x, f[:, None]


def friedman1(draw: np.random.Generator, n: int, features: int) -> tuple[Array, Array]:
    """x (n, F) uniform in [0, 1), f(x) (n, 1) = 10 sin(pi x0 x1) + 20 (x2 - 1/2)^2 + 10 x3 + 5 x4.

    Source: J. H. Friedman, Multivariate Adaptive Regression Splines, Annals of Statistics 19
    (1991), section 4.3. Features from the sixth on do not matter.
    """
    x = draw.random((n, features))
    f = 10 * np.sin(np.pi * x[:, 0] * x[:, 1])
    f += 20 * np.square(x[:, 2] - 0.5) + 10 * x[:, 3] + 5 * x[:, 4]
    return x, f[:, None]


def noise(draw: np.random.Generator, n: int, features: int) -> tuple[Array, Array]:
    """x (n, F) standard normal, f(x) = 0: y has nothing to do with x."""
    return draw.standard_normal((n, features)), np.zeros((n, 1))


KINDS: dict[str, Callable[[np.random.Generator, int, int], tuple[Array, Array]]] = {
    "linear": linear,
    "friedman1": friedman1,
    "noise": noise,
}
