"""Training: against torch's own loop, against a hand-worked step, and when it diverges."""

import logging
import math
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from job.config import Config, Train, load_config
from job.data import Dataset, Split, load_data
from job.errors import Diverged
from job.model import MLP, Unstandardise, build_model, with_dropout
from job.optim import make_optimizer, updater
from job.ranks import Ranks
from job.streams import Purpose, generator
from job.train import EpochRecord, Training, evaluate, loop, train
from job.train.loop import Trainer
from job.train.loss import Objective
from job.train.schedule import learning_rate_factor
from job.train.shuffle import Shuffle
from job.train.step import training_step

CPU = torch.device("cpu")
CLASSES: Any = (2, (), 2, "relu", "classification")


def prepared(*overrides: str) -> tuple[Config, Dataset, MLP]:
    config = load_config(None, ["data.samples=2000", "train.batch_size=300", *overrides])
    data = load_data(config.data, config.seed_number, 2**40)
    return config, data, build_model(config, data.training.x, data.training.y, len(data.classes))


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
    first, second = (Shuffle(1000, 0, 2, ahead=False).order(epoch) for epoch in (1, 2))
    assert np.array_equal(np.sort(first), np.arange(1000))
    assert np.array_equal(np.sort(second), np.arange(1000))
    assert not np.array_equal(first, second)
    assert np.array_equal(first, Shuffle(1000, 0, 5, ahead=False).order(1))


@pytest.mark.parametrize("first", [1, 2, 4])
def test_an_order_drawn_ahead_is_its_epochs(first: int) -> None:
    plain, ahead = (Shuffle(1000, 7, 4, ahead=ahead) for ahead in (False, True))
    for epoch in range(first, 5):
        assert np.array_equal(ahead.order(epoch), plain.order(epoch))
    assert ahead.drawn == {}  # none beyond the last


@pytest.mark.parametrize(("cpus", "ahead"), [({0}, False), ({0, 1}, True)])
def test_orders_are_drawn_ahead_where_a_cpu_has_nothing_else_to_do(
    cpus: set[int], ahead: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: cpus)
    config, data, model = prepared()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    trainer = Trainer(model, data, config, CPU, tmp_path, Ranks())
    assert (trainer.shuffle.thread is not None) == ahead


def test_the_shuffling_counts_as_training_time(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = Shuffle.order

    def slowly(self: Shuffle, epoch: int) -> NDArray[np.int64]:
        time.sleep(0.3)
        return draw(self, epoch)

    monkeypatch.setattr(Shuffle, "order", slowly)
    assert trained("train.epochs=2")[0].seconds > 0.6


def test_equal_runs_end_with_equal_bits() -> None:
    first, second = trained("train.epochs=2")[1].weights(), trained("train.epochs=2")[1].weights()
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)


def test_a_linear_model_learns_the_linear_kind_to_its_floor() -> None:
    """Excess risk of least squares: about (F + 1) noise^2 / N, here 11 / 1600."""
    config, data, model = prepared(
        "data.kind=linear", "model.hidden=[]", "train.epochs=100", "train.optimizer.lr=0.05"
    )
    run(model, data, config)
    risk = evaluate(model, data.test, config.train, CPU)["excess_risk"]
    assert risk is not None
    assert risk < 4 * 11 / 1600


def test_the_training_loss_is_in_the_targets_own_units() -> None:
    """A linear model that has converged: its training loss is the MSE on the training rows."""
    config, data, model = prepared(
        "model.hidden=[]", "train.epochs=60", "train.batch_size=1600", "train.optimizer.lr=0.1"
    )
    training = run(model, data, config)
    mse = evaluate(model, data.training, config.train, CPU)["mse"]
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
    schedule = load_config(None, [f"train.schedule.name={name}"]).train.schedule
    got = [learning_rate_factor(schedule, step, 100) for step in (0, 50, 99)]
    assert got == pytest.approx(factors, abs=1e-12)


def test_sgd_takes_the_hand_worked_step() -> None:
    """One weight 2, one row x = 3, y = 1: loss (6 - 1)^2, gradient 2 * 5 * 3 = 30."""
    network = nn.Sequential(nn.Linear(1, 1, bias=False))
    nn.init.constant_(network[0].weight, 2.0)  # type: ignore[arg-type]
    config = load_config(None, ["train.optimizer={name: sgd, lr: 0.1}"])
    optimizer = make_optimizer(network.parameters(), config.train.optimizer)
    loss = training_step(
        network, nn.MSELoss(), updater(optimizer), torch.tensor([[3.0]]), torch.tensor([[1.0]])
    )
    assert loss == 25.0
    assert network[0].weight.item() == pytest.approx(2 - 0.1 * 30)  # type: ignore[operator]


def test_the_layer_whose_answers_are_the_first_that_are_not_finite_is_named() -> None:
    network = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1))
    for layer, weight in ((0, 1.0), (2, 3e38)):
        nn.init.constant_(network[layer].weight, weight)  # type: ignore[arg-type]
        nn.init.zeros_(network[layer].bias)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    x, y = torch.tensor([[2.0]]), torch.zeros(1, 1)
    with pytest.raises(Diverged, match=r"inf, first in what layer 2 \(Linear\) answers"):
        training_step(network, nn.MSELoss(), updater(optimizer), x, y)
    with pytest.raises(Diverged, match="while every layer's answers are finite"):
        training_step(network, nn.MSELoss(), updater(optimizer), torch.tensor([[1.0]]), y)
    with pytest.raises(Diverged, match="a value of the rows themselves"):
        training_step(network, nn.MSELoss(), updater(optimizer), x * math.nan, y)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_the_update(value: float) -> None:
    network = nn.Sequential(nn.Linear(2, 1))
    before = [p.clone() for p in network.parameters()]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    x = torch.tensor([[1.0, value]])
    with pytest.raises(Diverged, match="the loss is"):
        training_step(network, nn.MSELoss(), updater(optimizer), x, torch.zeros(1, 1))
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
        training_step(network, loss, updater(optimizer), torch.ones(4, 2), torch.zeros(4, 1))  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


def test_large_finite_gradients_are_not_taken_for_divergence() -> None:
    """Their sum of squares overflows float32; they themselves do not."""
    network = nn.Sequential(nn.Linear(1, 1))
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-30)
    x = torch.full((1, 1), 1e25)
    training_step(network, nn.L1Loss(), updater(optimizer), x, torch.zeros(1, 1))


def test_divergence_names_step_and_epoch() -> None:
    with pytest.raises(Diverged, match=r"diverged at step \d+ in epoch 1: .*lower train"):
        trained("train.optimizer={name: sgd, lr: 1e15}")


def test_a_model_that_diverges_in_its_last_step_is_found_too() -> None:
    with pytest.raises(Diverged, match="held-out rows"):
        trained("train.optimizer={name: sgd, lr: 1e30}", "train.epochs=1", "train.batch_size=1600")


def test_metrics_by_hand() -> None:
    class Twice(MLP):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * x

    _, data, _ = prepared()
    rows = type(data.test)(
        x=np.array([[1], [2], [3]], np.float32),
        y=np.array([[1], [5], [6]], np.float32),
        truth=np.array([[2], [3], [7]], np.float64),
    )
    got = evaluate(Twice(1, (), 1, "relu"), rows, Train(), CPU)
    assert got == {
        "loss": pytest.approx(2 / 3),
        "mse": pytest.approx(2 / 3),  # errors 1, -1, 0
        "mae": pytest.approx(2 / 3),
        "r2": pytest.approx(1 - 2 / 14),  # 9 + 1 + 4 around the mean 4
        "excess_risk": pytest.approx(2 / 3),  # 0, 1, -1
    }


def test_metrics_of_several_outputs_by_hand() -> None:
    """The second output's unit is ten times the first's; the loss is the mean of squares in
    standard deviations, 3 and 30, times the mean variance."""

    class Zero(MLP):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(x), 2)

    rows = Split(
        x=np.zeros((2, 1), np.float32),
        y=np.array([[1, 20], [-1, 0]], np.float32),
        truth=np.array([[1.0, 10.0], [0.0, 10.0]]),
    )
    model = Zero(1, (), 2, "relu")
    assert isinstance(model.output, Unstandardise)
    model.output.std.copy_(torch.tensor([3.0, 30.0]))
    assert evaluate(model, rows, Train(), CPU) == {
        "loss": pytest.approx((1 / 9 + 200 / 900) / 2 * (9 + 900) / 2),
        "mse": pytest.approx((1 + 200) / 2),
        "mae": pytest.approx((1 + 10) / 2),
        "r2": pytest.approx(((1 - 1 / 1) + (1 - 200 / 100)) / 2),
        "excess_risk": pytest.approx((0.5 + 100) / 2),
    }


def test_several_outputs_are_learnt_each_to_its_floor() -> None:
    config, data, model = prepared(
        "data.kind=linear", "data.outputs=3", "model.hidden=[]", "train.epochs=100",
        "train.optimizer.lr=0.05",
    )  # fmt: skip
    training = run(model, data, config)
    answers = model(torch.from_numpy(data.test.x)).detach().numpy()
    risks = np.square(answers - data.test.truth).mean(axis=0)
    assert (risks < 4 * 11 / 1600).all()
    test = evaluate(model, data.test, config.train, CPU)
    assert test["excess_risk"] == pytest.approx(risks.mean())
    # All outputs vary alike, so that in their unit the loss is the mse.
    assert test["loss"] == pytest.approx(test["mse"], rel=0.01)
    assert training.epochs[-1].training_loss == pytest.approx(1.0, abs=0.1)


def test_metrics_of_classes_by_hand() -> None:
    class Given(MLP):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    rows = Split(
        x=np.array([[0.75, 0.25], [0.5, 0.5], [1.0, 0.0]], np.float32),
        y=np.array([[0], [1], [0]], np.float32),
        truth=np.array([[0.5, 0.5], [0.5, 0.5], [1.0, 0.0]]),
    )
    got = evaluate(Given(*CLASSES), rows, Train(loss="cross_entropy"), CPU)
    log_loss = -(math.log(0.75) + math.log(0.5) + math.log(1)) / 3
    assert got == {
        "loss": pytest.approx(log_loss),
        "log_loss": pytest.approx(log_loss),
        "accuracy": pytest.approx(2 / 3),  # of equal ones the first counts
        "excess_risk": pytest.approx((0.5 * math.log(2 / 3) + 0.5 * math.log(2)) / 3),
    }


def test_a_probability_that_rounds_to_zero_is_a_large_loss_and_not_infinite() -> None:
    class Sure(MLP):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tensor([[1.0, 0.0]])

    rows = Split(np.zeros((1, 2), np.float32), np.ones((1, 1), np.float32), np.array([[0.5, 0.5]]))
    got = evaluate(Sure(*CLASSES), rows, Train(loss="cross_entropy"), CPU)
    assert got["log_loss"] == pytest.approx(149 * math.log(2))


def test_classes_are_learnt_to_their_floor() -> None:
    """The truth is linear in x, so a model without hidden layers can be the truth."""
    config, data, model = prepared(
        "data.kind=gaussians", "train.loss=cross_entropy", "data.samples=50000",
        "model.hidden=[]", "train.epochs=10", "train.batch_size=512", "train.optimizer.lr=0.02",
    )  # fmt: skip
    training = run(model, data, config)
    got = evaluate(model, data.test, config.train, CPU)
    assert 0 <= float(str(got["excess_risk"])) < 0.001
    weight = model.weights()["network.0.weight"] / model.weights()["input.std"]
    log_odds = weight[1] - weight[0]
    np.testing.assert_allclose(log_odds, 2 / math.sqrt(10), rtol=0.15)
    assert training.epochs[-1].training_loss == pytest.approx(data.floor["log_loss"], rel=0.03)


def test_r2_of_a_constant_target_is_unknown() -> None:
    config, data, model = prepared("data.kind=noise", "data.noise=0.0", "train.epochs=1")
    run(model, data, config)
    assert evaluate(model, data.test, config.train, CPU)["r2"] is None


# Losses.

UNIT = 3.0  # the targets' standard deviation


def scaled(outputs: int = 1) -> MLP:
    """A model whose targets have mean 5 and standard deviation UNIT."""
    model = MLP(2, (), outputs, "relu")
    assert isinstance(model.output, Unstandardise)
    model.output.mean.fill_(5.0)
    model.output.std.fill_(UNIT)
    return model


@pytest.mark.parametrize(
    ("keys", "error", "by_hand"),
    [
        ({"loss": "mse"}, 6.0, 36.0),
        ({"loss": "mae"}, -6.0, 6.0),
        # Errors of 0.5 and 2 standard deviations: e^2 / 2, and delta (|e| - delta / 2).
        ({"loss": "huber"}, 1.5, UNIT**2 * 0.125),
        ({"loss": "huber"}, -6.0, UNIT**2 * 1.5),
        ({"loss": "huber", "huber_delta": 0.1}, 1.5, UNIT**2 * 0.1 * 0.45),
    ],
)
def test_a_loss_of_numbers_by_hand_in_the_targets_unit(
    keys: dict[str, Any], error: float, by_hand: float
) -> None:
    objective = Objective(Train(**keys), scaled())
    y = torch.tensor([[4.0]])
    assert objective.of_answers(y.double() + error, y) == pytest.approx(by_hand)
    network = (y + error - 5) / UNIT
    trained_on = float(objective.function(network, objective.targets(y)))
    assert trained_on * objective.unit == pytest.approx(by_hand, rel=1e-6)


@pytest.mark.parametrize(
    ("keys", "by_hand"),
    [
        ({}, -(math.log(0.7) + math.log(0.4)) / 2),
        # Weights 1 and 3: what a row counts is its class's weight.
        ({"class_weights": (1.0, 3.0)}, -(math.log(0.7) + 3 * math.log(0.4)) / 4),
        # Targets (0.9, 0.1) and (0.1, 0.9).
        (
            {"label_smoothing": 0.2},
            -(0.9 * math.log(0.7) + 0.1 * math.log(0.3) + 0.9 * math.log(0.4) + 0.1 * math.log(0.6))
            / 2,
        ),
    ],
)
def test_cross_entropy_by_hand(keys: dict[str, Any], by_hand: float) -> None:
    objective = Objective(Train(loss="cross_entropy", **keys), MLP(*CLASSES))
    y = torch.tensor([[0.0], [1.0]])
    answers = torch.tensor([[0.7, 0.3], [0.6, 0.4]], dtype=torch.float64)
    assert objective.of_answers(answers, y) == pytest.approx(by_hand)
    logits = answers.log().float() + 7  # to which the softmax is blind
    assert float(objective.function(logits, objective.targets(y))) == pytest.approx(by_hand)


@pytest.mark.parametrize(
    "keys",
    [
        ("train.loss=mae",),
        ("train.loss=huber", "train.huber_delta=0.3"),
        ("data.kind=gaussians", "train.loss=cross_entropy", "train.class_weights=[1, 4]"),
        ("data.kind=gaussians", "train.loss=cross_entropy", "train.label_smoothing=0.1"),
    ],
)
def test_the_training_loss_is_the_loss_on_the_training_rows(keys: tuple[str, ...]) -> None:
    """Of a model that has converged, so that it is the same before and after the last step."""
    config, data, model = prepared(
        "model.hidden=[]", "train.epochs=200", "train.batch_size=1600", *keys
    )
    training = run(model, data, config)
    loss = evaluate(model, data.training, config.train, CPU)["loss"]
    assert training.epochs[-1].training_loss == pytest.approx(loss, rel=1e-3)


def test_the_mean_absolute_error_is_minimised_by_the_median() -> None:
    """One feature that says nothing, and a skew target: mse would answer its mean, 0.5 more."""
    config, data, model = prepared(
        "data.kind=noise", "data.features=1", "model.hidden=[]", "train.loss=mae",
        "train.epochs=300", "train.batch_size=1600",
    )  # fmt: skip
    skew = np.square(data.training.y)
    rows = Split(np.zeros_like(data.training.x), skew, data.training.truth)
    model = build_model(config, rows.x, rows.y)
    run(model, replace(data, training=rows), config)
    answer = model(torch.zeros(1, 1)).item()
    assert answer == pytest.approx(np.median(skew), abs=0.03)
    assert abs(answer - skew.mean()) > 0.4


def test_a_class_that_weighs_more_is_answered_more_often() -> None:
    keys = ("data.kind=gaussians", "train.loss=cross_entropy", "train.epochs=10")
    shares = []
    for weights in ("[1, 1]", "[1, 8]"):
        config, data, model = prepared(*keys, f"train.class_weights={weights}")
        run(model, data, config)
        answers = model(torch.from_numpy(data.test.x)).detach().numpy()
        shares.append(float((answers.argmax(axis=1) == 1).mean()))
    assert shares[0] == pytest.approx(0.5, abs=0.1)
    assert shares[1] > 0.7


# Warmup, clipping, dropout.


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
def test_warmup_rises_in_equal_steps_to_the_peak_and_the_schedule_begins_there(name: str) -> None:
    for warmup in ("4", "0.04"):
        text = f"train.schedule={{name: {name}, warmup: {warmup}}}"
        schedule = load_config(None, [text]).train.schedule
        got = [learning_rate_factor(schedule, step, 100) for step in range(6)]
        assert got[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
        middle = learning_rate_factor(schedule, 52, 100)
        assert middle == pytest.approx(1.0 if name == "constant" else 0.5)
        assert got[5] <= 1.0


def test_the_learning_rate_that_is_trained_with_is_the_schedules() -> None:
    """6 steps an epoch, 4 of 12 warmup; the last of the first epoch is step 5: 1 - 1 / 8."""
    keys = ("train.schedule={name: linear, warmup: 4}", "train.epochs=2")
    training, _ = trained(*keys, "train.optimizer.lr=0.08")
    assert [record.learning_rate for record in training.epochs] == pytest.approx([0.07, 0.01])


def test_a_gradient_is_clipped_to_the_norm_and_a_shorter_one_left_alone() -> None:
    """Weights 3 and 4 with the loss w . x: the gradient is x, of norm 5."""
    for clip, step in ((1.0, (0.6, 0.8)), (None, (3.0, 4.0)), (6.0, (3.0, 4.0))):
        network = nn.Sequential(nn.Linear(2, 1, bias=False))
        nn.init.zeros_(network[0].weight)  # type: ignore[arg-type]
        optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
        loss: Any = lambda answer, y: answer.sum()  # noqa: E731
        x = torch.tensor([[3.0, 4.0]])
        training_step(network, loss, updater(optimizer), x, torch.zeros(1, 1), grad_clip=clip)
        np.testing.assert_allclose(-network[0].weight.detach()[0], step, rtol=1e-5)  # type: ignore[operator]


def test_a_norm_that_overflows_is_divergence_and_not_a_gradient_of_zero() -> None:
    network = nn.Sequential(nn.Linear(1, 1))
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-30)
    x = torch.full((1, 1), 1e25)
    with pytest.raises(Diverged, match="the norm of the gradients is inf"):
        training_step(network, nn.L1Loss(), updater(optimizer), x, torch.zeros(1, 1), grad_clip=1.0)


def test_clipping_reaches_the_training() -> None:
    clipped, plain = (
        trained("train.epochs=1", "train.optimizer={name: sgd, lr: 0.1}", *more)[1].weights()
        for more in (("train.grad_clip=1e-6",), ())
    )
    untrained = prepared()[2].weights()
    for name, weight in untrained.items():
        np.testing.assert_allclose(clipped[name], weight, atol=1e-6)
    assert not np.allclose(plain["network.0.weight"], untrained["network.0.weight"], atol=1e-4)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "gelu", "silu", "tanh"])
def test_dropout_leaves_layers_weights_and_answers_as_they_are(activation: str) -> None:
    keys = (f"model.activation={activation}", "model.hidden=[8, 8]")
    _, data, plain = prepared(*keys)
    _, _, dropping = prepared(*keys, "model.dropout=0.5")
    run(dropping, data, load_config(None, [*keys, "model.dropout=0.5", "train.epochs=1"]))
    assert str(dropping) == str(plain)
    assert list(dropping.state_dict()) == list(plain.state_dict())
    x = torch.from_numpy(data.test.x)
    assert torch.equal(dropping(x), dropping(x))
    plain.load_state_dict(dropping.state_dict())
    assert torch.equal(dropping(x), plain(x))


def test_dropout_drops_its_share_after_each_activation_and_keeps_the_mean() -> None:
    model = MLP(3, (400, 400), 1, "tanh")
    network = with_dropout(model.network, 0.3)
    kinds = [type(layer).__name__ for layer in network]
    assert kinds == ["Linear", "Tanh", "Dropout"] * 2 + ["Linear"]
    assert list(network.state_dict()) == list(model.network.state_dict())
    torch.manual_seed(0)
    x = torch.randn(50, 3)
    hidden, dropped = network[:2](x), network[:3](x)
    assert float((dropped == 0).float().mean()) == pytest.approx(0.3, abs=0.02)
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], hidden[kept] / 0.7)


def test_masks_are_a_function_of_seed_and_step() -> None:
    """Whatever torch's own generator has been used for."""
    keys = ("model.dropout=0.2", "train.epochs=2")
    torch.manual_seed(1)
    first = trained(*keys)[1].weights()
    torch.manual_seed(2)
    second = trained(*keys)[1].weights()
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)
    # One training row and a model that stands still: the losses differ by their masks alone.
    one_row = ("data.samples=100", "data.test=0.32", "data.validation=0.67")
    training, _ = trained(*one_row, *keys, "train.epochs=20", "train.optimizer.lr=1e-30")
    assert len({record.training_loss for record in training.epochs}) == 20
    none = trained("train.epochs=2")[1].weights()
    assert not np.array_equal(first["network.0.weight"], none["network.0.weight"])


def test_dropout_keeps_a_wide_model_from_memorising() -> None:
    """200 rows of noise, 400 units: what is learnt is noise, and dropout learns less of it."""
    keys = ("data.kind=noise", "data.samples=320", "data.features=20", "model.hidden=[400]")
    losses = []
    for dropout in (0.0, 0.5):
        more = ("train.epochs=40", "train.batch_size=64", f"model.dropout={dropout}")
        config, data, model = prepared(*keys, *more)
        run(model, data, config)
        losses.append(evaluate(model, data.training, config.train, CPU)["mse"] or 0.0)
    assert losses[0] < 0.1 * losses[1]


# Early stopping, on noise: there is nothing to learn, and soon the validation loss rises.

NOISE = ("data.kind=noise", "train.schedule.name=constant", "train.optimizer.lr=0.005")


def losses(training: Training) -> list[float]:
    return [record.validation_loss for record in training.epochs]


def test_it_stops_where_the_loss_falls_no_more_with_the_best_epochs_weights(
    caplog: pytest.LogCaptureFixture,
) -> None:
    whole, last = trained(*NOISE, "train.epochs=12")
    best = int(np.argmin(losses(whole))) + 1
    caplog.set_level(logging.INFO, logger="job")
    training, model = trained(*NOISE, "train.epochs=12", "train.early_stopping.patience=4")
    assert 1 < best < 8
    assert losses(training) == losses(whole)[: best + 4]
    assert (training.best, training.result) == (best, whole.epochs[best - 1])
    assert f"of {best + 4} epochs the validation loss was lowest after epoch {best}" in caplog.text
    _, wanted = trained(*NOISE, f"train.epochs={best}")
    for name, weight in model.weights().items():
        assert weight.tobytes() == wanted.weights()[name].tobytes()
    assert (
        model.weights()["network.0.weight"].tobytes()
        != last.weights()["network.0.weight"].tobytes()
    )


def test_with_patience_to_the_end_the_best_weights_are_taken_all_the_same() -> None:
    training, model = trained(*NOISE, "train.epochs=12", "train.early_stopping.patience=12")
    assert len(training.epochs) == 12
    assert training.best == int(np.argmin(losses(training))) + 1 < 12
    _, data, _ = prepared(*NOISE)
    loss = evaluate(model, data.validation, Train(), CPU)["loss"]
    assert loss == pytest.approx(min(losses(training)), rel=1e-12)


def test_a_fall_that_is_not_more_than_min_delta_is_none() -> None:
    whole, _ = trained(*NOISE, "train.epochs=12")
    first, second = losses(whole)[:2]
    assert second < first
    for share, best in ((0.99, 2), (1.01, 1)):
        delta = (first - second) * share
        stopping = f"train.early_stopping={{patience: 1, min_delta: {delta}}}"
        training, _ = trained(*NOISE, "train.epochs=12", stopping)
        assert training.best >= best
        assert (training.best == 1) == (best == 1)


def test_without_it_the_last_epochs_weights_stay() -> None:
    training, model = trained(*NOISE, "train.epochs=12")
    assert training.result is training.epochs[-1]
    _, data, _ = prepared(*NOISE)
    loss = evaluate(model, data.validation, Train(), CPU)["loss"]
    assert loss == pytest.approx(losses(training)[-1], rel=1e-12)


# Precision.


def test_bfloat16_is_trained_in_and_the_model_stays_float32() -> None:
    keys = ("train.epochs=4", "train.optimizer.lr=0.02")
    (full, _), (_, data, _) = trained(*keys), prepared()
    training, model = trained(*keys, "train.precision=bfloat16")
    assert all(weight.dtype == np.float32 for weight in model.weights().values())
    assert model(torch.from_numpy(data.test.x)).dtype == torch.float32
    for record, other in zip(training.epochs, full.epochs, strict=True):
        assert record.training_loss != other.training_loss
        assert record.training_loss == pytest.approx(other.training_loss, rel=0.02)
    _, again = trained(*keys, "train.precision=bfloat16")
    for name, weight in model.weights().items():
        assert weight.tobytes() == again.weights()[name].tobytes()


def test_bfloat16_rounds_the_layers_and_not_the_loss() -> None:
    """1 + 2^-9 is 1 in bfloat16, and log 2 would be 0.691."""
    network = nn.Sequential(nn.Linear(1, 1, bias=False))
    nn.init.constant_(network[0].weight, 1 + 2**-9)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    x, y = torch.ones(1, 1), torch.full((1, 1), 1 + 2**-12)
    loss = training_step(network, nn.MSELoss(), updater(optimizer), x, y, bfloat16=True)
    assert loss == 2**-24
    assert network[0].weight.item() == 1 + 2**-9  # type: ignore[operator]

    network = nn.Sequential(nn.Linear(1, 2))
    nn.init.zeros_(network[0].weight)  # type: ignore[arg-type]
    nn.init.zeros_(network[0].bias)  # type: ignore[arg-type]
    y = torch.zeros(1, dtype=torch.long)
    loss = training_step(network, nn.CrossEntropyLoss(), updater(optimizer), x, y, bfloat16=True)
    assert loss == pytest.approx(math.log(2), rel=1e-6)


def test_the_arithmetic_of_the_steps_is_never_that_of_the_evaluation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """TF32 where it is wanted, and numbers below the smallest normal one as 0."""
    seen: dict[str, set[tuple[str, float]]] = {"_steps": set(), "evaluate": set()}
    tiny = torch.tensor([2.0**-127])

    def arithmetic() -> tuple[str, float]:
        return torch.get_float32_matmul_precision(), (tiny * 1.0).item()

    def spy_on(owner: object, name: str) -> None:
        real = getattr(owner, name)

        def spy(*arguments: Any, **keywords: Any) -> Any:
            seen[name].add(arithmetic())
            return real(*arguments, **keywords)

        monkeypatch.setattr(owner, name, spy)

    spy_on(loop.Trainer, "_steps")
    spy_on(loop, "evaluate")
    for precision, within in (("tf32", "high"), ("float32", "highest"), ("bfloat16", "highest")):
        trained(f"train.precision={precision}", "train.epochs=1")
        assert seen == {"_steps": {(within, 0.0)}, "evaluate": {("highest", 2.0**-127)}}
        seen["_steps"].clear()
    with pytest.raises(Diverged):
        trained("train.precision=tf32", "train.optimizer={name: sgd, lr: 1e15}")
    assert arithmetic() == ("highest", 2.0**-127)


def test_tf32_on_a_cpu_is_float32_and_is_said_to_be(caplog: pytest.LogCaptureFixture) -> None:
    _, plain = trained("train.epochs=1")
    assert "tf32" not in caplog.text
    _, model = trained("train.epochs=1", "train.precision=tf32")
    assert "train.precision tf32 has no effect, the CPU has no TF32" in caplog.text
    for name, weight in model.weights().items():
        assert weight.tobytes() == plain.weights()[name].tobytes()
