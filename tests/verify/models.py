"""Random models with rows that fit them, over the range that the verifier must not misjudge."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from job.config import Task, load_config
from job.export import Exporter, write_goldens
from job.model import MLP, Unstandardise
from job.verify import Reference
from job.verify.oracle import ACTIVATIONS, Oracle

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Sample:
    """A model, its rows x (N, F) and its activation."""

    model: MLP
    x: Float32
    activation: str
    task: Task = "regression"

    def oracle(self) -> Oracle:
        return Oracle(self.model.weights(), self.activation, self.task)

    def answer(self, x: Float32) -> Float32:
        with torch.no_grad():
            answer: Float32 = self.model(torch.from_numpy(x.copy())).numpy()
        return answer

    def reference(self) -> Reference:
        weights = self.model.weights()
        batches = (1, 2, 7, 64)
        return Reference.of_model(weights, self.activation, batches, self.x, self.answer, self.task)

    def export(self, folder: Path) -> Reference:
        """All files of this model as the job writes them, and what they must agree with."""
        widths = [layer.out_features for layer in self.model.network if hasattr(layer, "weight")]
        config = load_config(
            None, [f"model.hidden={widths[:-1]}", f"model.activation={self.activation}"]
        )
        reference = self.reference()
        folder.mkdir(exist_ok=True)
        write_goldens(folder, reference.golden_input, reference.golden_output)
        Exporter(self.model, config).write(self.model.weights(), folder, "f" * 64)
        return reference


def sample(
    seed: int,
    hidden: tuple[int, ...],
    activation: str,
    *,
    features: int = 10,
    outputs: int = 1,
    gain: float = 1.0,
    x_mean: float = 0.0,
    x_std: float = 1.0,
    y_mean: float = 0.0,
    y_std: float = 1.0,
    task: Task = "regression",
) -> Sample:
    """A model whose weights are `gain` times those that training starts from."""
    draw = np.random.default_rng(seed)
    x = draw.normal(x_mean, x_std, (64, features)).astype(np.float32)
    y = draw.normal(y_mean, y_std, (64, outputs)).astype(np.float32)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = MLP(features, hidden, outputs, activation, task).eval()
    model.input.fit(x)
    if isinstance(model.output, Unstandardise):
        model.output.fit(y)
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.mul_(gain)
    return Sample(model, x, activation, task)


def any_sample(seed: int, widest: int = 1024, task: Task = "regression") -> Sample:
    """Depth 0 to 6, width 1 to `widest`, inputs and outputs of any magnitude, zero nearly too."""
    draw = np.random.default_rng(seed)
    widths = 2 ** draw.uniform(0, np.log2(widest), draw.integers(0, 7))
    x_std, y_std = 10 ** draw.uniform(-8, 8, 2)
    if seed % 8 == 0:
        y_std = 1e-20
    return sample(
        seed,
        tuple(int(width) for width in widths),
        list(ACTIVATIONS)[seed % 5],
        features=int(draw.integers(1, 40)),
        outputs=int(draw.integers(2, 5)) if task == "classification" else int(draw.integers(1, 4)),
        gain=draw.uniform(0.3, 3),
        x_mean=x_std * draw.choice([0, 1, 1e4]),
        x_std=x_std,
        y_mean=y_std * draw.choice([0, 1, 1e4]),
        y_std=y_std,
        task=task,
    )


def trained(s: Sample) -> Sample:
    """The same after 50 steps of Adam towards a function of its rows."""
    x = s.model.input(torch.from_numpy(s.x))
    network = s.model.network
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    y = torch.sin(x.sum(dim=1, keepdim=True))
    for _ in range(50):
        optimizer.zero_grad()
        answer = network(x)
        if s.task == "classification":
            loss = torch.nn.functional.cross_entropy(answer, (y[:, 0] > 0).long())
        else:
            loss = (answer - y).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return s
