"""The reference that every file is held against: the trained weights, evaluated in float64.

It reads the weights by their names and knows the model's formula, and shares no code with the
model or its exporters. Shapes: N rows, F features, H units of a layer, O outputs.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

# Unit roundoff of float32, and its smallest normal number: an engine may flush what is smaller.
U = 2.0**-24
TINY = 2.0**-126


@dataclass(frozen=True)
class Activation:
    """An activation in float64 with what its float32 evaluations may be off by.

    `slope` bounds |f'|: how much an error of the argument grows. `own_error` bounds, in units of
    U, the error that an engine's own formula adds at z: engines evaluate tanh, sigmoid and erf by
    rational approximations of a few U absolute error.

    `vague_at_infinity`: engines differ in what an infinite argument gives. torch's gelu of +Inf is
    +Inf for one element and NaN for several, by the instruction set.
    """

    value: Callable[[Float64], Float64]
    slope: float
    own_error: Callable[[Float64], Float64]
    vague_at_infinity: bool = False


def _erf(z: Float64) -> Float64:
    values: Float64 = np.vectorize(math.erf, otypes=[np.float64])(z)
    return values


def _sigmoid(z: Float64) -> Float64:
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-z))


ACTIVATIONS: dict[str, Activation] = {
    "relu": Activation(lambda z: np.maximum(z, 0.0), 1.0, np.zeros_like),
    "leaky_relu": Activation(lambda z: np.where(z > 0, z, 0.01 * z), 1.0, np.abs),
    "gelu": Activation(
        lambda z: 0.5 * z * (1 + _erf(z / np.sqrt(2))), 1.13, lambda z: 8 * np.abs(z), True
    ),
    "silu": Activation(lambda z: z * _sigmoid(z), 1.1, lambda z: 8 * np.abs(z)),
    "tanh": Activation(np.tanh, 1.0, lambda z: 8 * np.minimum(np.abs(z), 1.0)),
}


@dataclass(frozen=True)
class Answer:
    """What a float32 engine must answer: `value` (N, O) within `bound` (N, O).

    Where `value` is not finite the engine's answer must be the same: NaN for NaN, infinity for
    infinity; in a `vague` row (N,) either will do, but no number. `bound` is infinite where
    float32 itself may overflow on the way: there nothing can be demanded, and such elements do
    not count as compared.
    """

    value: Float64
    bound: Float64
    vague: NDArray[np.bool_]


@dataclass(frozen=True)
class Oracle:
    """The trained model as numbers: named float32 weights and the activation's name."""

    weights: Mapping[str, Float32]
    activation: str

    def __call__(self, x: Float32) -> Answer:
        """The exact answer to x (N, F) with a forward error bound for float32 engines.

        The bound carries |error| through the layers: for z = W h + b with n terms,
        e_z <= |W| e_h + gamma_{n+1} (|W| (|h| + e_h) + |b|), gamma_k = k u / (1 - k u),
        from N. Higham, Accuracy and Stability of Numerical Algorithms (2002), section 3.1; it
        holds for any order of summation, so for any engine.
        """
        with np.errstate(all="ignore"):
            return self._evaluate(x.astype(np.float64))

    def _evaluate(self, x: Float64) -> Answer:
        mean, std = self._get("input.mean"), self._get("input.std")
        h = (x - mean) / std
        error = _settled(h, 3 * U * np.abs(h) + TINY / std)
        overflow = _may_overflow(h, error) | _may_overflow(x - mean, 0.0)
        activation = ACTIVATIONS[self.activation]
        vague = np.zeros(len(x), np.bool_)
        layers = self.linear_layers()
        for index, layer in enumerate(layers):
            weight, bias = self._get(f"{layer}.weight"), self._get(f"{layer}.bias")
            terms = weight.shape[1] + 1
            magnitude = (np.abs(h) + error) @ np.abs(weight).T + np.abs(bias)
            z = h @ weight.T + bias
            gamma = terms * U / (1 - terms * U)
            error = _settled(z, error @ np.abs(weight).T + gamma * magnitude + terms * TINY)
            # Any partial sum is at most `magnitude`: if that fits, no order of summation overflows.
            overflow = overflow | _may_overflow(np.where(np.isfinite(z), magnitude, 0.0), 0.0)
            h = z
            if index < len(layers) - 1:
                vague |= np.isinf(z).any(axis=1) & activation.vague_at_infinity
                h = activation.value(z)
                error = _settled(h, activation.slope * error + U * activation.own_error(z) + TINY)
        mean, std = self._get("output.mean"), self._get("output.std")
        y = h * std + mean
        magnitude = (np.abs(h) + error) * std + np.abs(mean)
        bound = _settled(y, error * std + 3 * U * magnitude + TINY)
        overflow = overflow | _may_overflow(np.where(np.isfinite(y), magnitude, 0.0), 0.0)
        return Answer(y, np.where(overflow[:, None], np.inf, bound), vague)

    def linear_layers(self) -> list[str]:
        """Names of the linear layers, first to last: network.0, network.2, ..."""
        found = [name.removesuffix(".weight") for name in self.weights if name.endswith(".weight")]
        return sorted(found, key=lambda name: int(name.rpartition(".")[2]))

    def _get(self, name: str) -> Float64:
        return self.weights[name].astype(np.float64)


def _settled(value: Float64, error: Float64) -> Float64:
    """No error where the value is not finite: NaN and infinity follow from signs alone."""
    return np.where(np.isfinite(value), error, 0.0)


def _may_overflow(value: Float64, error: Float64 | float) -> NDArray[np.bool_]:
    """For each row (N,): may a finite value leave float32's range?"""
    large = np.abs(value) + error > float(np.finfo(np.float32).max)
    return np.asarray((large & np.isfinite(value)).any(axis=1))
