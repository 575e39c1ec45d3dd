"""Training: against torch's own loop, against a hand-worked step, and when it diverges."""

import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from job.config import Config, Data, load_config
from job.data import Dataset, Split, load_data
from job.errors import Diverged
from job.model import MLP, Unstandardise, build_model
from job.optim import make_optimizer
from job.streams import Purpose, generator
from job.train import EpochRecord, Training, evaluate, train
from job.train.loop import _shuffled
from job.train.schedule import learning_rate_factor
from job.train.step import training_step

CPU = torch.device("cpu")


def prepared(*overrides: str) -> tuple[Config, Dataset, MLP]:
    config = load_config(None, ["data.samples=2000", "train.batch_size=300", *overrides])
    data = load_data(config.data, config.seed, 2**40)
    return config, data, build_model(config, data.training.x, data.training.y)


def run(
    model: MLP,
    data: Dataset,
    config: Config,
    on_epoch: Callable[[EpochRecord], None] = lambda _: None,
) -> Training:
    with tempfile.TemporaryDirectory() as checkpoints:
        return train(model, data, config, CPU, Path(checkpoints), on_epoch)


def trained(*overrides: str) -> tuple[Training, MLP]:
    config, data, model = prepared(*overrides)
    return run(model, data, config), model


@pytest.mark.parametrize(
    ("name", "torchs"),
    [
        ("adam", lambda p: torch.optim.Adam(p, lr=0.01)),
        ("adamw", lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.01)),
        ("sgd", lambda p: torch.optim.SGD(p, lr=0.01)),
    ],
)
def test_it_is_the_textbook_loop(name: str, torchs: object) -> None:
    """The same weights as a loop in plain torch, written here without the job's own code."""
    keys = [f"train.optimizer.name={name}", "train.epochs=2"]
    _, data, reference = prepared(*keys)
    optimizer = torchs(reference.network.parameters())  # type: ignore[operator]
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=12)
    assert isinstance(reference.output, Unstandardise)
    x = (torch.from_numpy(data.training.x) - reference.input.mean) / reference.input.std
    y = (torch.from_numpy(data.training.y) - reference.output.mean) / reference.output.std
    for epoch in (1, 2):
        order = torch.from_numpy(generator(0, Purpose.SHUFFLE, epoch).permutation(1600))
        for start in range(0, 1600, 300):
            rows = order[start : start + 300]
            optimizer.zero_grad()
            nn.MSELoss()(reference.network(x[rows]), y[rows]).backward()
            optimizer.step()
            scheduler.step()
    _, model = trained(*keys)
    for name, weight in reference.weights().items():
        np.testing.assert_allclose(model.weights()[name], weight, rtol=1e-4, atol=1e-6)


def test_the_last_smaller_batch_is_trained_too() -> None:
    training, _ = trained("train.epochs=1")
    assert training.steps == 6  # 1600 rows are five batches of 300 and one of 100
    assert training.rows == 1600


def test_every_row_comes_once_an_epoch_and_epochs_differ() -> None:
    first = torch.cat(list(_shuffled(1000, 64, 0, 1, CPU)))
    second = torch.cat(list(_shuffled(1000, 64, 0, 2, CPU)))
    assert torch.equal(first.sort().values, torch.arange(1000))
    assert torch.equal(second.sort().values, torch.arange(1000))
    assert not torch.equal(first, second)
    assert torch.equal(first, torch.cat(list(_shuffled(1000, 64, 0, 1, CPU))))


def test_equal_runs_end_with_equal_bits() -> None:
    first, second = trained("train.epochs=2")[1].weights(), trained("train.epochs=2")[1].weights()
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)


def test_a_linear_model_learns_the_linear_kind_to_its_floor() -> None:
    """Excess risk of least squares: about (F + 1) noise^2 / N, here 11 / 1600."""
    config, data, model = prepared(
        "data.kind=linear", "model.hidden=[]", "train.epochs=100", "train.optimizer.lr=0.05"
    )
    run(model, data, config)
    risk = evaluate(model, data.test, "regression", CPU)["excess_risk"]
    assert risk is not None
    assert risk < 4 * 11 / 1600


def test_the_training_loss_is_in_the_targets_own_units() -> None:
    """A linear model that has converged: its training loss is the MSE on the training rows."""
    config, data, model = prepared(
        "model.hidden=[]", "train.epochs=60", "train.batch_size=1600", "train.optimizer.lr=0.1"
    )
    training = run(model, data, config)
    mse = evaluate(model, data.training, "regression", CPU)["mse"]
    assert training.epochs[-1].training_loss == pytest.approx(mse, rel=1e-4)


def test_epochs_are_told_as_they_end() -> None:
    config, data, model = prepared("train.epochs=3")
    told: list[EpochRecord] = []
    training = run(model, data, config, told.append)
    assert told == training.epochs
    assert [record.epoch for record in told] == [1, 2, 3]
    assert [record.steps for record in told] == [6, 12, 18]
    assert told[2].training_loss < told[0].training_loss


@pytest.mark.parametrize(
    ("name", "factors"),
    [
        ("constant", [1, 1, 1]),
        ("linear", [1, 0.5, 0.01]),
        ("cosine", [1, 0.5, (1 - math.cos(math.pi / 100)) / 2]),
    ],
)
def test_a_schedule_is_its_formula(name: str, factors: list[float]) -> None:
    got = [learning_rate_factor(name, step, 100) for step in (0, 50, 99)]
    assert got == pytest.approx(factors, abs=1e-12)


def test_sgd_takes_the_hand_worked_step() -> None:
    """One weight 2, one row x = 3, y = 1: loss (6 - 1)^2, gradient 2 * 5 * 3 = 30."""
    network = nn.Sequential(nn.Linear(1, 1, bias=False))
    nn.init.constant_(network[0].weight, 2.0)  # type: ignore[arg-type]
    config = load_config(None, ["train.optimizer={name: sgd, lr: 0.1}"])
    optimizer = make_optimizer(network.parameters(), config.train.optimizer)
    loss = training_step(
        network, nn.MSELoss(), optimizer, torch.tensor([[3.0]]), torch.tensor([[1.0]])
    )
    assert loss == 25.0
    assert network[0].weight.item() == pytest.approx(2 - 0.1 * 30)  # type: ignore[operator]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_the_update(value: float) -> None:
    network = nn.Sequential(nn.Linear(2, 1))
    before = [p.clone() for p in network.parameters()]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    x = torch.tensor([[1.0, value]])
    with pytest.raises(Diverged, match="the loss is"):
        training_step(network, nn.MSELoss(), optimizer, x, torch.zeros(1, 1))
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


class Cliff(torch.autograd.Function):
    """A finite value with a gradient that is not: the square root's at zero, say."""

    @staticmethod
    def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * math.inf


def test_a_gradient_that_is_not_finite_stops_before_the_update_and_is_named() -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    before = [p.clone() for p in network.parameters()]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)

    def loss(answer: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return nn.functional.mse_loss(Cliff.apply(answer), y)  # type: ignore[no-untyped-call]

    with pytest.raises(Diverged, match=r"the gradient of 0\.weight is not finite"):
        training_step(network, loss, optimizer, torch.ones(4, 2), torch.zeros(4, 1))  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


def test_large_finite_gradients_are_not_taken_for_divergence() -> None:
    """Their sum of squares overflows float32; they themselves do not."""
    network = nn.Sequential(nn.Linear(1, 1))
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-30)
    x = torch.full((1, 1), 1e25)
    training_step(network, nn.L1Loss(), optimizer, x, torch.zeros(1, 1))


def test_divergence_names_step_and_epoch() -> None:
    with pytest.raises(Diverged, match=r"diverged at step \d+ in epoch 1: .*lower train"):
        trained("train.optimizer={name: sgd, lr: 1e15}")


def test_a_model_that_diverges_in_its_last_step_is_found_too() -> None:
    with pytest.raises(Diverged, match="held-out rows"):
        trained("train.optimizer={name: sgd, lr: 1e30}", "train.epochs=1", "train.batch_size=1600")


def test_metrics_by_hand() -> None:
    class Twice(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * x

    _, data, _ = prepared()
    rows = type(data.test)(
        x=np.array([[1], [2], [3]], np.float32),
        y=np.array([[1], [5], [6]], np.float32),
        truth=np.array([[2], [3], [7]], np.float64),
    )
    got = evaluate(Twice(), rows, "regression", CPU)
    assert got == {
        "loss": pytest.approx(2 / 3),
        "mse": pytest.approx(2 / 3),  # errors 1, -1, 0
        "mae": pytest.approx(2 / 3),
        "r2": pytest.approx(1 - 2 / 14),  # 9 + 1 + 4 around the mean 4
        "excess_risk": pytest.approx(2 / 3),  # 0, 1, -1
    }


def test_metrics_of_classes_by_hand() -> None:
    class Given(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    rows = Split(
        x=np.array([[0.75, 0.25], [0.5, 0.5], [1.0, 0.0]], np.float32),
        y=np.array([[0], [1], [0]], np.float32),
        truth=np.array([[0.5, 0.5], [0.5, 0.5], [1.0, 0.0]]),
    )
    got = evaluate(Given(), rows, "classification", CPU)
    log_loss = -(math.log(0.75) + math.log(0.5) + math.log(1)) / 3
    assert got == {
        "loss": pytest.approx(log_loss),
        "log_loss": pytest.approx(log_loss),
        "accuracy": pytest.approx(2 / 3),  # of equal ones the first counts
        "excess_risk": pytest.approx((0.5 * math.log(2 / 3) + 0.5 * math.log(2)) / 3),
    }


def test_a_probability_that_rounds_to_zero_is_a_large_loss_and_not_infinite() -> None:
    class Sure(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tensor([[1.0, 0.0]])

    rows = Split(np.zeros((1, 2), np.float32), np.ones((1, 1), np.float32), np.array([[0.5, 0.5]]))
    got = evaluate(Sure(), rows, "classification", CPU)
    assert got["log_loss"] == pytest.approx(149 * math.log(2))


def test_classes_are_learnt_to_their_floor() -> None:
    """The truth is linear in x, so a model without hidden layers can be the truth."""
    training, model = trained(
        "data.kind=gaussians", "train.loss=cross_entropy", "data.samples=50000",
        "model.hidden=[]", "train.epochs=10", "train.batch_size=512", "train.optimizer.lr=0.02",
    )  # fmt: skip
    data = load_data(Data(kind="gaussians", samples=50_000), 0, 2**40)
    got = evaluate(model, data.test, "classification", CPU)
    assert 0 <= float(str(got["excess_risk"])) < 0.001
    weight = model.weights()["network.0.weight"] / model.weights()["input.std"]
    log_odds = weight[1] - weight[0]
    np.testing.assert_allclose(log_odds, 2 / math.sqrt(10), rtol=0.15)
    assert training.epochs[-1].training_loss == pytest.approx(data.floor["log_loss"], rel=0.03)


def test_r2_of_a_constant_target_is_unknown() -> None:
    config, data, model = prepared("data.kind=noise", "data.noise=0.0", "train.epochs=1")
    run(model, data, config)
    assert evaluate(model, data.test, "regression", CPU)["r2"] is None
