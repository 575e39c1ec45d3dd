"""The reference that every file is held against: the trained weights, evaluated in float64.

It reads the weights by their names and knows the model's formula, and shares no code with the
model or its exporters. Shapes: N rows, F features, H units of a layer, O outputs or classes.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from job.errors import DataError

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

# Unit roundoff of float32, and its smallest normal number: an engine may flush what is smaller.
U = 2.0**-24
TINY = 2.0**-126
# Beyond it float32 may overflow on the way: gelu as z (1 + erf) / 2 doubles its argument first.
LARGE = float(np.finfo(np.float32).max) / 4
TASKS = ("regression", "classification")
# Random evaluations behind `Answer.noise`.
SAMPLES = 16


@dataclass(frozen=True)
class Activation:
    """An activation in float64 with what its float32 evaluations may be off by.

    `slope` bounds |f'|: how much an error of the argument grows. `own_error` bounds, in units of
    U, the error that an engine's own formula adds for arguments of at most that magnitude:
    engines evaluate tanh, sigmoid and erf by rational approximations of a few U absolute error.
    No runtime promises how few, so 8 is the next power of two above the largest that was measured,
    over 3 million arguments of both signs from 1e-45 to 1e38, torch 2.13 and onnxruntime 1.32 on
    x86 with AVX-512; whether onnxruntime optimises made no difference:

                            torch   onnxruntime
        tanh / min(|z|, 1)   1.0        5.5      (it goes beyond 1 where it saturates)
        silu / |z|           2.0        3.3
        gelu / |z|           5.9        1.9      (torch without oneDNN: 4.5)
        leaky / 0.01 |z|     1.4        1.4

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
    # 0.01 is rounded to float32, and so is the product.
    "leaky_relu": Activation(lambda z: np.where(z > 0, z, 0.01 * z), 1.0, lambda z: 0.02 * z),
    "gelu": Activation(lambda z: 0.5 * z * (1 + _erf(z / np.sqrt(2))), 1.13, lambda z: 8 * z, True),
    "silu": Activation(lambda z: z * _sigmoid(z), 1.1, lambda z: 8 * z),
    "tanh": Activation(np.tanh, 1.0, lambda z: 8 * np.minimum(z, 1.0)),
}


@dataclass(frozen=True)
class Answer:
    """What a float32 engine must answer: `value` (N, O) within `bound` (N, O).

    Where `value` is not finite the engine's answer must be the same: NaN for NaN, infinity for
    infinity; in a `vague` row (N,) either will do, but no number. `bound` is infinite where
    float32 itself may overflow on the way: there nothing can be demanded, and such elements do
    not count as compared. `noise` (N, O) is the size that float32's rounding errors have by
    chance, root mean square, where `bound` is what they cannot exceed. `classes`: the values of a
    row are probabilities, the largest of which decides.
    """

    value: Float64
    bound: Float64
    vague: NDArray[np.bool_]
    noise: Float64
    classes: bool = False

    def of_rows(self, rows: NDArray[np.intp]) -> "Answer":
        """The answer to those rows of the input, in that order."""
        return replace(
            self,
            value=self.value[rows],
            bound=self.bound[rows],
            vague=self.vague[rows],
            noise=self.noise[rows],
        )


class Stage(NamedTuple):
    """A value on the way to the answer, (N, H), and the size of its rounding errors by chance."""

    name: str
    value: Float64
    noise: Float64


class _Evaluation(NamedTuple):
    """The values of the stages, the size of each one's own rounding, and `Answer`'s."""

    values: list[Float64]
    roundings: list[Float64]
    bound: Float64
    vague: NDArray[np.bool_]


@dataclass(frozen=True)
class Oracle:
    """The trained model as numbers: named float32 weights, and the names of what is between them.

    `task` regression ends in the target's units, classification in a softmax.
    """

    weights: Mapping[str, Float32]
    activation: str
    task: str = "regression"

    def __call__(self, x: Float32) -> Answer:
        """The exact answer to x (N, F) with a forward error bound for float32 engines.

        The bound carries |error| through the layers: for z = W h + b with n terms,
        e_z <= |W| e_h + gamma_{n+1} (|W| (|h| + e_h) + |b|), gamma_k = k u / (1 - k u),
        from N. Higham, Accuracy and Stability of Numerical Algorithms (2002), section 3.1; it
        holds for any order of summation, so for any engine. To it comes what is lost where
        numbers below TINY are read or written as zeros (not where that makes 0 * Inf of a weight).
        """
        with np.errstate(all="ignore"):
            found = self._evaluate(x)
            noise = self._noises(found)[-1]
        classes = self.task == "classification"
        return Answer(found.values[-1], found.bound, found.vague, noise, classes)

    def stages(self, x: Float32) -> list[Stage]:
        """What the model computes on its way from x (N, F) to the answer, in this order."""
        layers = linear_layers(self.weights)
        names = [name for layer in layers for name in (layer, f"{self.activation} after {layer}")]
        names = ["input", *names[:-1], "output"]
        with np.errstate(all="ignore"):
            found = self._evaluate(x)
            noises = self._noises(found)
        return [Stage(*one) for one in zip(names, found.values, noises, strict=True)]

    def _evaluate(self, x: Float32) -> _Evaluation:
        mean, std = self._scaling("input")
        exact = x.astype(np.float64)
        if "input.fill" in self.weights:  # what stands for NaN, in deviations
            exact = np.where(np.isnan(exact), mean + self._get("input.fill") * std, exact)
        h = (exact - mean) / std
        error = _settled(h, 3 * U * np.abs(h) + 3 * TINY / std + TINY)
        overflow = _too_large(h) | _too_large(exact - mean)
        activation = ACTIVATIONS[self.activation]
        vague = np.zeros(len(x), np.bool_)
        values, roundings = [h], [error]
        for index, (weight, bias) in enumerate(self._layers):
            terms = weight.shape[1] + 1
            finite = np.where(np.isfinite(h), np.abs(h), 0.0)
            magnitude = finite @ np.abs(weight).T + np.abs(bias)
            carried = error @ np.abs(weight).T
            gamma = terms * U / (1 - terms * U)
            lost = TINY * (2 * terms + (finite + error).sum(axis=1, keepdims=True))
            # Any partial sum is at most that: if it fits, no order of summation overflows.
            overflow |= _too_large(magnitude + carried)
            h = h @ weight.T + bias
            error = _settled(h, carried + gamma * (magnitude + carried) + lost)
            values.append(h)
            roundings.append(_settled(h, math.sqrt(terms) * U * magnitude + lost))
            if index < len(self._layers) - 1:
                vague |= np.isinf(h).any(axis=1) & activation.vague_at_infinity
                own = U * activation.own_error(np.abs(h) + error) + TINY
                typical = U * activation.own_error(np.abs(h)) + TINY
                h = activation.value(h)
                error = _settled(h, activation.slope * error + own)
                values.append(h)
                roundings.append(_settled(h, typical))
        if self.task == "classification":
            y, bound, typical = _softmax_with_bounds(h, error)
        else:
            mean, std = self._scaling("output")
            y = h * std + mean
            magnitude = (np.abs(h) + error) * std + np.abs(mean)
            bound = error * std + 3 * U * magnitude + 3 * TINY
            typical = 3 * U * (np.abs(h) * std + np.abs(mean)) + 3 * TINY
            overflow |= _too_large(magnitude)
        values.append(y)
        roundings.append(_settled(y, typical))
        bound = np.where(overflow[:, None], np.inf, _settled(y, bound))
        return _Evaluation(values, roundings, bound, vague)

    def _noises(self, exact: _Evaluation) -> list[Float64]:
        """Root mean square over SAMPLES evaluations that err by chance as float32 does.

        The bound supposes that all errors conspire: through wide layers, six deep, it exceeds the
        answers themselves, and would let any answer pass. Errors that are independent and of mean
        zero make a sum of n terms err by sqrt(n) u (|W| |h| + |b|), not n u: N. Higham and
        T. Mary, A new approach to probabilistic rounding error analysis (2019), whose sizes are
        taken here as standard deviations. Their way through the layers is not estimated but run
        (D. S. Parker, Monte Carlo arithmetic, 1997).
        """
        draw = np.random.Generator(np.random.Philox(0))
        squares = [np.zeros_like(value) for value in exact.values]
        for _ in range(SAMPLES):
            erring = self._erring(exact, draw)
            for total, wrong, value in zip(squares, erring, exact.values, strict=True):
                total += np.square(wrong - value)
        return [np.sqrt(total / SAMPLES) for total in squares]

    def _erring(self, exact: _Evaluation, draw: np.random.Generator) -> Iterator[Float64]:
        """The values of the model's formula with a random error of the given size after each."""
        sizes = iter(exact.roundings)

        def rounded(step: Float64) -> Float64:
            return step + next(sizes) * draw.standard_normal(step.shape)

        activation = ACTIVATIONS[self.activation].value
        yield (h := rounded(exact.values[0]))
        for index, (weight, bias) in enumerate(self._layers):
            if index:
                yield (h := rounded(activation(h)))
            yield (h := rounded(h @ weight.T + bias))
        if self.task == "classification":
            yield rounded(_softmax(h))
        else:
            mean, std = self._scaling("output")
            yield rounded(h * std + mean)

    @cached_property
    def _layers(self) -> list[tuple[Float64, Float64]]:
        """W (H, H of the layer before) and b (H,) of each z = W h + b, first to last."""
        names = linear_layers(self.weights)
        return [(self._get(f"{n}.weight"), self._get(f"{n}.bias")) for n in names]

    def _scaling(self, side: str) -> tuple[Float64, Float64]:
        return self._get(f"{side}.mean"), self._get(f"{side}.std")

    def _get(self, name: str) -> Float64:
        return self.weights[name].astype(np.float64)


def _softmax(z: Float64) -> Float64:
    """exp(z_i) / sum_j exp(z_j) over each row of z (N, O); NaN where the largest z is infinite."""
    powers = np.exp(z - z.max(axis=1, keepdims=True))
    shares: Float64 = powers / powers.sum(axis=1, keepdims=True)
    return shares


def _softmax_with_bounds(z: Float64, error: Float64) -> tuple[Float64, Float64, Float64]:
    """The softmax of z (N, O) that is off by `error`: its value, bound and typical rounding.

    p_i = 1 / (1 + sum over j not i of exp(z_j - z_i)) falls with every z_j and rises with z_i, so
    the ends of its interval are known. An engine then computes exp(z_i - max z) with a relative
    error of u |z_i - max z| from the difference and of 8 u from exp itself, more than was measured
    of any (see `Activation`), sums O such terms and divides.
    """
    p = _softmax(z)
    top = (z + error).max(axis=1, keepdims=True)
    least, most = np.exp(z - error - top), np.exp(z + error - top)
    low = least / (least + most.sum(axis=1, keepdims=True) - most)
    high = most / (most + least.sum(axis=1, keepdims=True) - least)
    low, high = np.nan_to_num(low, nan=0.0), np.nan_to_num(high, nan=1.0)
    # A class at -Inf has exactly no share.
    depth = np.where(np.isfinite(z), z.max(axis=1, keepdims=True) - z, 0.0)
    far = depth + error + error.max(axis=1, keepdims=True)
    relative = U * (far + (p * far).sum(axis=1, keepdims=True) + z.shape[1] + 18)
    bound = np.maximum(high - p, p - low) + high * relative + TINY
    return p, bound, U * p * (depth + 4) + TINY


def linear_layers(weights: Mapping[str, Float32]) -> list[str]:
    """Names of the linear layers, first to last: network.0, network.2, ..."""
    found = [name.removesuffix(".weight") for name in weights if name.endswith(".weight")]
    return sorted(found, key=lambda name: int(name.rpartition(".")[2]))


def widths(weights: Mapping[str, Float32], task: str = "regression") -> list[int]:
    """F, each H and O of a model whose weights all have the shapes that follow from these.

    Raises:
        DataError: a weight is missing, too many, or does not fit.
    """
    try:
        layers = linear_layers(weights)
        found = [weights["input.mean"].size, *(len(weights[f"{n}.weight"]) for n in layers)]
    except (KeyError, ValueError, TypeError) as error:
        raise DataError(f"these are not the weights of a model: {error!r}") from None
    wanted: dict[str, tuple[int, ...]] = {}
    scalings = {"input": found[0]} | ({"output": found[-1]} if task == "regression" else {})
    for side, columns in scalings.items():
        wanted |= {f"{side}.mean": (columns,), f"{side}.std": (columns,)}
    if "input.fill" in weights:
        wanted["input.fill"] = (found[0],)
    for name, before, after in zip(layers, found, found[1:], strict=False):
        wanted |= {f"{name}.weight": (after, before), f"{name}.bias": (after,)}
    shapes = {name: weight.shape for name, weight in weights.items()}
    if shapes != wanted or not layers or 0 in found:
        raise DataError(f"these are not the weights of a model: {shapes}")
    return found


def _settled(value: Float64, error: Float64) -> Float64:
    """No error where the value is not finite: NaN and infinity follow from signs alone."""
    return np.where(np.isfinite(value), error, 0.0)


def _too_large(value: Float64) -> NDArray[np.bool_]:
    """For each row (N,): may a finite value leave float32's range?"""
    large = np.abs(value) > LARGE
    return np.asarray((large & np.isfinite(value)).any(axis=1))
