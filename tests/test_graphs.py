"""Steps that ask the host nothing, as CUDA graphs need them: they are autograd's, to the byte.

On a CPU they are launched one by one; what is recorded is the same code. The last tests replay it
and need a GPU.
"""

import copy
import logging
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from job.config import load_config
from job.data import load_data
from job.errors import Diverged
from job.model import build_model
from job.optim import updater
from job.ranks import Ranks
from job.train.backprop import DeviceBackpropagation
from job.train.graphs import STEPS, GraphedSteps, steps_within_reach, why_no_graphs
from job.train.loop import Trainer
from job.train.step import Autograd

N, BATCH = 300, 16  # 18 whole batches and one of 12 rows
FULL = -(-N // BATCH)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")

# Numbers that float32 holds, so that a rate is the same on a device and in Python.
RATES = [2.0**-6 / (1 + step % 3) if step % 3 < 2 else 2.0**-7 for step in range(FULL)]


class Case:
    """A small network, its rows, and its steps in both ways."""

    def __init__(
        self,
        loss: nn.Module,
        kind: type[torch.optim.Adam] = torch.optim.Adam,
        clip: float | None = None,
        bfloat16: bool = False,
        *,
        autograd: bool = True,
    ) -> None:
        torch.manual_seed(0)
        classes = isinstance(loss, nn.CrossEntropyLoss)
        width = 24 if autograd else 512  # one parameter, which is updated in pieces
        network = nn.Sequential(nn.Linear(5, width), nn.ReLU(), nn.Linear(width, 3))
        x, y = torch.randn(N, 5), torch.randint(3, (N,)) if classes else torch.randn(N, 3)

        def engine() -> Autograd | DeviceBackpropagation:
            own = copy.deepcopy(network)
            if not autograd:
                return DeviceBackpropagation(own, x, y, clip)
            return Autograd(own, loss, x, y.clone(), grad_clip=clip, bfloat16=bfloat16)

        self.plain, self.engine = engine(), engine()
        self.optimizers = [
            kind(e.parameters, lr=0.5, weight_decay=0.125, fused=True)
            for e in (self.plain, self.engine)
        ]
        self.graphed = GraphedSteps(self.engine, self.optimizers[1], BATCH, N)
        self.order = np.random.default_rng(0).permutation(N)
        self.batches: list[NDArray[np.int64]] = np.split(self.order, range(BATCH, N, BATCH))

    def plainly(self, steps: range) -> list[float]:
        losses, update = [], updater(self.optimizers[0])
        for step in steps:
            self.optimizers[0].param_groups[0]["lr"] = RATES[step]
            losses.append(self.plain.step(self.batches[step], update))
        return losses

    def at_once(self, steps: range) -> list[float]:
        rows = self.order[steps.start * BATCH : steps.stop * BATCH]
        return self.graphed.steps(rows, RATES[steps.start : steps.stop])

    def assert_same(self) -> None:
        for one, other in zip(self.plain.parameters, self.graphed.engine.parameters, strict=True):
            assert torch.equal(one, other)
        states = [o.state_dict()["state"] for o in self.optimizers]
        torch.testing.assert_close(*states, rtol=0, atol=0)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize(
    ("loss", "bfloat16"),
    [
        (nn.MSELoss(), False),
        (nn.MSELoss(), True),
        (nn.L1Loss(), False),
        (nn.HuberLoss(delta=0.3), False),
        (nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 0.5]), label_smoothing=0.1), False),
    ],
    ids=["mse", "bfloat16", "mae", "huber", "cross_entropy"],
)
def test_two_epochs_are_the_plain_steps(
    loss: nn.Module, bfloat16: bool, clip: float | None, kind: type[torch.optim.Adam]
) -> None:
    case = Case(loss, kind, clip, bfloat16)
    for part in (range(FULL), range(5), range(5, 6), range(6, FULL)):
        assert case.at_once(part) == case.plainly(part)
        case.assert_same()


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
@pytest.mark.parametrize("clip", [None, 0.05])
def test_two_epochs_without_autograd_are_the_plain_steps(
    clip: float | None, kind: type[torch.optim.Adam]
) -> None:
    case = Case(nn.MSELoss(), kind, clip, autograd=False)
    for part in (range(FULL), range(5), range(5, 6), range(6, FULL)):
        assert case.at_once(part) == case.plainly(part)
        case.assert_same()


class Asked(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes each operation whose answer the host waits for."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            self.operations.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("autograd", [True, False])
def test_a_step_asks_the_host_nothing(autograd: bool) -> None:
    case = Case(nn.MSELoss(), clip=0.05, autograd=autograd)
    with Asked() as plain:
        case.plainly(range(1))
    assert plain.operations
    with Asked() as graphed:
        case.graphed._steps(BATCH, 2)
    assert graphed.operations == []


class Gradient(nn.Module):
    """A finite loss, whose gradient is not where y is 9: that of the root of 0, times 0."""

    def forward(self, answer: Tensor, y: Tensor) -> Tensor:
        return (answer * (y != 9)).square().sqrt().mean()


class Norm(nn.Module):
    """Finite gradients, of which the squares overflow where y is 9."""

    def forward(self, answer: Tensor, y: Tensor) -> Tensor:
        return (answer * torch.where(y == 9, 1e25, 1.0)).mean()


@pytest.mark.parametrize(
    ("loss", "value", "said"),
    [
        (nn.MSELoss(), math.inf, "the loss is inf"),
        (Gradient(), 9, "the gradient of 0.weight is not finite"),
        (Norm(), 9, "the norm of the gradients is inf"),
    ],
)
def test_from_the_first_step_that_is_not_finite_on_nothing_changes(
    loss: nn.Module, value: float, said: str
) -> None:
    case = Case(loss, clip=1.0)
    for engine in (case.plain, case.engine):
        assert isinstance(engine, Autograd)
        engine.y[case.batches[3][0]] = value
    assert case.at_once(range(FULL)) == case.plainly(range(3))
    case.assert_same()
    assert case.at_once(range(3, FULL)) == []
    case.assert_same()
    with pytest.raises(Diverged, match=said):
        case.plainly(range(3, 4))


def test_so_without_autograd() -> None:
    case = Case(nn.MSELoss(), clip=1.0, autograd=False)
    for engine in (case.plain, case.engine):
        assert isinstance(engine, DeviceBackpropagation)
        engine.rows[case.batches[3][0], -1] = math.inf
    assert case.at_once(range(FULL)) == case.plainly(range(3))
    case.assert_same()
    with pytest.raises(Diverged, match="the loss is inf"):
        case.plainly(range(3, 4))


def test_what_leaves_other_bytes_is_noticed_and_taken_back() -> None:
    case = Case(nn.MSELoss())
    case.at_once(range(4))
    case.plainly(range(4))
    steps = partial(case.graphed._launch, BATCH, 2, 0)
    assert case.graphed.agree(steps, steps)
    assert not case.graphed.agree(steps, partial(case.graphed._launch, BATCH, 3, 0))
    assert not case.graphed.agree(steps, lambda: None)
    case.assert_same()


@pytest.mark.parametrize(
    ("steps", "seconds", "next_time"),
    [(8, 0.004, 1000), (8, 0.005, 800), (1, 0.005, 96), (8, 0.5, STEPS), (8, 60.0, STEPS)],
)
def test_so_many_steps_come_at_once_as_take_half_a_second(
    steps: int, seconds: float, next_time: int
) -> None:
    assert steps_within_reach(steps, seconds) == next_time


def trainer(folder: Path, *keys: str, device: str = "cpu") -> Trainer:
    """Of a model that autograd trains on a CPU too."""
    config = load_config(
        None, ["data.samples=2000", "train.batch_size=64", "train.loss=mae", "seed=3", *keys]
    )
    data = load_data(config.data, config.seed_number, 2**40)
    model = build_model(config, data.training.x, data.training.y)
    return Trainer(model, data, config, torch.device(device), folder, Ranks())


def graphed(trainer: Trainer) -> Trainer:
    assert isinstance(trainer.engine, Autograd)
    trainer.graphs = GraphedSteps(trainer.engine, trainer.optimizer, 64, trainer.rows)
    return trainer


def epochs(trainer: Trainer) -> list[Any]:
    while not trainer.done:
        trainer.train_epoch(lambda *_, **__: None, lambda: None)
    return trainer.training.epochs


def test_the_training_is_the_same_with_them(tmp_path: Path) -> None:
    # Rates of float32 stand for Python's: these are the same in both.
    keys = ("train.epochs=3", "train.schedule.name=constant", "train.optimizer.lr=0.0078125")
    plain, other = trainer(tmp_path / "a", *keys), graphed(trainer(tmp_path / "b", *keys))
    assert epochs(other) == epochs(plain)
    for one, two in zip(plain.engine.parameters, other.engine.parameters, strict=True):
        assert torch.equal(one, two)


def test_the_learning_rate_of_each_step_is_its_own(tmp_path: Path) -> None:
    keys = ("train.epochs=2", "train.schedule={name: cosine, warmup: 0.1}")
    plain, other = epochs(trainer(tmp_path / "a", *keys)), epochs(graphed(trainer(tmp_path, *keys)))
    assert [e.learning_rate for e in other] == [e.learning_rate for e in plain]
    losses = [[e.training_loss for e in records] for records in (other, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_divergence_is_of_its_step_and_says_what_was_not_finite(tmp_path: Path) -> None:
    plain, other = trainer(tmp_path / "a"), graphed(trainer(tmp_path / "b"))
    said = []
    for one in (plain, other):
        assert isinstance(one.engine, Autograd)
        one.engine.y[5] = math.nan
        with pytest.raises(Diverged) as raised:
            epochs(one)
        said.append(str(raised.value))
    assert said[0] == said[1]
    assert "in epoch 1: the loss is nan" in said[0]
    assert 2 < plain.training.steps == other.training.steps


def test_a_checkpoint_of_theirs_is_one_of_the_plain_steps(tmp_path: Path) -> None:
    keys = ("train.epochs=2", "train.schedule.name=constant", "train.optimizer.lr=0.0078125")
    whole = epochs(trainer(tmp_path / "whole", *keys))
    first = graphed(trainer(tmp_path / "cut", *keys))
    first.train_epoch(lambda *_, **__: None, lambda: None)
    first.saver.save()
    assert epochs(trainer(tmp_path / "cut", *keys)) == whole
    assert epochs(graphed(trainer(tmp_path / "cut", *keys))) == whole


@pytest.mark.parametrize(
    ("keys", "processes", "reason"),
    [
        ([], 1, None),
        (["train.optimizer.name=adamw"], 1, None),
        ([], 2, "the 2 processes add up their gradients"),
        (["model.dropout=0.1"], 1, "each step draws its dropout from a seed of its own"),
        (["train.optimizer={name: sgd}"], 1, "train.optimizer is sgd, not adam or adamw"),
        (
            ["train.optimizer={name: adamz}", "train.schedule.name=constant"],
            1,
            "train.optimizer is adamz, not",
        ),
    ],
)
def test_what_needs_the_host_in_every_step(
    keys: list[str], processes: int, reason: str | None
) -> None:
    found = why_no_graphs(load_config(None, keys), processes)
    assert found == reason if reason is None else reason in str(found)


@needs_cuda
@pytest.mark.parametrize("keys", [[], ["train.grad_clip=0.1"], ["train.loss=mse"]])
def test_on_cuda_they_are_recorded_and_leave_the_same_bytes(
    keys: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    keys = ["train.epochs=3", *keys]
    recorded = trainer(tmp_path / "a", *keys, device="cuda")
    assert "steps are replayed as CUDA graphs" in caplog.text
    assert recorded.graphs is not None
    assert len(recorded.graphs.graphs) == 2 + (recorded.rows % 64 > 0)
    launched = trainer(tmp_path / "b", *keys, device="cuda")
    assert launched.graphs is not None
    launched.graphs.graphs.clear()
    assert epochs(recorded) == epochs(launched)
    for one, two in zip(recorded.engine.parameters, launched.engine.parameters, strict=True):
        assert torch.equal(one, two)


@needs_cuda
def test_on_cuda_what_cannot_be_recorded_is_launched_one_by_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    real = GraphedSteps._steps

    def asking(self: GraphedSteps, size: int, count: int) -> None:
        real(self, size, count)
        self.made.item()  # which a stream that is recorded refuses

    monkeypatch.setattr(GraphedSteps, "_steps", asking)
    plain = trainer(tmp_path, "train.epochs=1", device="cuda")
    assert plain.graphs is None
    assert "launched one by one, since recording failed: " in caplog.text
    assert len(epochs(plain)) == 1
