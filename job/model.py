"""The multi-layer perceptron, with its preprocessing inside the graph.

Shapes: N rows, F features, H hidden units, O outputs.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from job.config import Config, Task
from job.streams import Purpose, generator

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


class Scaling(nn.Module):
    """A mean and a standard deviation for each column; buffers, since nothing learns them."""

    mean: Tensor
    std: Tensor

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(columns))
        self.register_buffer("std", torch.ones(columns))

    def fit(self, values: NDArray[np.float32]) -> None:
        """Takes mean and standard deviation over the rows of `values` (N, columns)."""
        mean = values.mean(axis=0, dtype=np.float64)
        # In parts: a float64 copy of all rows would double the memory.
        squares = sum(
            np.square(values[i : i + 65_536] - mean).sum(axis=0)
            for i in range(0, len(values), 65_536)
        )
        self._take(mean, np.sqrt(squares / len(values)))

    def _take(self, mean: NDArray[np.float64], std: NDArray[np.float64]) -> None:
        scale = std.astype(np.float32)
        scale[scale < np.finfo(np.float32).tiny] = 1.0  # a constant column is only shifted
        self.mean.copy_(torch.from_numpy(mean.astype(np.float32)))
        self.std.copy_(torch.from_numpy(scale))


class Standardise(Scaling):
    """Raw values to mean 0 and standard deviation 1."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class FillAndStandardise(Standardise):
    """The same, where NaN is a missing value: it becomes `fill`, the mean of those that are there.

    `fill` is a buffer of its own, though it is 0, so that the weights say what the model is.
    """

    fill: Tensor

    def __init__(self, columns: int) -> None:
        super().__init__(columns)
        self.register_buffer("fill", torch.zeros(columns))

    def fit(self, values: NDArray[np.float32]) -> None:
        there = [column[~np.isnan(column)] for column in values.T]
        mean, std = (np.array([f(c, dtype=np.float64) for c in there]) for f in (np.mean, np.std))
        self._take(mean, std)

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(torch.isnan(x), self.fill, super().forward(x))


class Unstandardise(Scaling):
    """Standardised values back to raw ones."""

    def forward(self, z: Tensor) -> Tensor:
        return z * self.std + self.mean


class MLP(nn.Module):
    """Raw features (N, F) to answers in the target's units (N, O), or to probabilities (N, K).

    The layers for `hidden=[100]`: Standardise, Linear(F, 100), activation, Linear(100, O),
    Unstandardise; for K classes O = K and a softmax stands in Unstandardise's place. `fill` takes
    NaN for a missing value. `network` is what is trained, on standardised rows.
    """

    def __init__(
        self,
        features: int,
        hidden: tuple[int, ...],
        outputs: int,
        activation: str,
        task: Task = "regression",
        *,
        fill: bool = False,
    ) -> None:
        super().__init__()
        self.input = FillAndStandardise(features) if fill else Standardise(features)
        self.network = nn.Sequential()
        width = features
        for units in hidden:
            self.network.append(nn.Linear(width, units))
            self.network.append(ACTIVATIONS[activation]())
            width = units
        self.network.append(nn.Linear(width, outputs))
        regression = task == "regression"
        self.output = Unstandardise(outputs) if regression else nn.Softmax(dim=1)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.output(self.network(self.input(x)))
        return answer

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """Every parameter and buffer by name, on the host: on a CPU not a copy."""
        return {name: tensor.cpu().numpy() for name, tensor in self.state_dict().items()}

    def take(self, weights: Mapping[str, NDArray[np.float32]]) -> None:
        """The inverse of `weights`: copies each into the parameter or buffer of its name."""
        self.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})


def with_dropout(network: nn.Sequential, share: float) -> nn.Sequential:
    """The same layers, and so the same weights under the same names, with dropout after each
    activation. For training alone: the model itself, and what is exported of it, has none."""
    layers = nn.Sequential()
    for name, layer in network.named_children():
        layers.add_module(name, layer)
        if share > 0 and not isinstance(layer, nn.Linear):
            layers.add_module(f"dropout{name}", nn.Dropout(share))
    return layers


def build_model(
    config: Config, x: NDArray[np.float32], y: NDArray[np.float32], classes: int = 0
) -> MLP:
    """The untrained model for training rows x (N, F), y (N, O) or the numbers (N, 1) of so many
    classes; a function of the seed alone."""
    model = _bare(config, x.shape[1], classes or y.shape[1])
    model.input.fit(x)
    if isinstance(model.output, Unstandardise):
        model.output.fit(y)
    initialise(model.network, config.seed_number)
    return model


def model_of(config: Config, weights: Mapping[str, NDArray[np.float32]]) -> MLP:
    """The model of this configuration that has these weights, named as `MLP.weights` names them."""
    last = f"network.{2 * len(config.model.hidden)}.bias"
    model = _bare(config, len(weights["input.mean"]), len(weights[last]))
    model.take(weights)
    return model


def _bare(config: Config, features: int, outputs: int) -> MLP:
    hidden, activation, task = config.model.hidden, config.model.activation, config.train.task
    fill = config.data.missing == "mean"
    return MLP(features, hidden, outputs, activation, task, fill=fill)


def initialise(network: nn.Sequential, seed: int) -> None:
    """Weights and biases uniform in +-1/sqrt(fan in), which is nn.Linear's own rule.

    Drawn from our own streams, since torch's numbers differ between releases.
    """
    layers = [module for module in network if isinstance(module, nn.Linear)]
    for index, layer in enumerate(layers):
        draw = generator(seed, Purpose.INITIAL_WEIGHTS, index)
        bound = 1 / math.sqrt(layer.in_features)
        for parameter in (layer.weight, layer.bias):
            values = draw.uniform(-bound, bound, tuple(parameter.shape)).astype(np.float32)
            parameter.data.copy_(torch.from_numpy(values))
