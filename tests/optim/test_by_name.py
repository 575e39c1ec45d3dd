"""AdamX and AdamZ from job.yaml to the published run."""

import inspect
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from job import optim
from job.config import load_config
from job.config.schema import AdamX, AdamZ
from job.errors import ConfigError
from job.optim import make_optimizer
from tests.conftest import SMALL, manifest_of, run_job

from .reference import adamz_lr


@pytest.mark.parametrize(
    ("names", "optimizer"),
    [
        (("Adam W", "adam-w", "ADAMW", "adam_w"), torch.optim.AdamW),
        (("adamx", "Adam X", "adam-x", "ADAM_X"), optim.AdamX),
        (("adamz", "Adam Z", "adam-z"), optim.AdamZ),
    ],
)
def test_an_optimizers_name_is_folded(names: tuple[str, ...], optimizer: type) -> None:
    for name in names:
        keys = [f"train.optimizer.name={name}", "train.schedule.name=constant"]
        config = load_config(None, keys).train.optimizer
        assert config.name == optimizer.__name__.lower()
        assert type(make_optimizer(nn.Linear(1, 1).parameters(), config)) is optimizer


@pytest.mark.parametrize(
    ("config", "optimizer"),
    [(AdamX(name="adamx"), optim.AdamX), (AdamZ(name="adamz"), optim.AdamZ)],
)
def test_keys_and_defaults_are_those_of_the_optimizer(config: Any, optimizer: type) -> None:
    parameters = inspect.signature(optimizer).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.name != "params"}
    assert config.model_dump(exclude={"name"}) == defaults


def test_every_key_reaches_the_optimizer() -> None:
    text = "{name: adamz, lr: 0.02, patience: 7, max_lr: 0.04, betas: [0.8, 0.9]}"
    config = load_config(None, [f"train.optimizer={text}", "train.schedule.name=constant"])
    group = make_optimizer(nn.Linear(1, 1).parameters(), config.train.optimizer).param_groups[0]
    got = {key: group[key] for key in ("lr", "patience", "max_lr", "betas")}
    assert got == {"lr": 0.02, "patience": 7, "max_lr": 0.04, "betas": (0.8, 0.9)}


@pytest.mark.parametrize(
    ("lines", "fault"),
    [
        (
            ["name: adamax"],
            "job.yaml:3: train.optimizer.name: expected 'adam' or 'adamw' or 'adamx' or 'adamz' "
            "or 'sgd', got \"adamax\"",
        ),
        (
            ["name: adamx", "beta1_decy: 0.9"],
            "job.yaml:4: train.optimizer.beta1_decy: unknown key; did you mean beta1_decay?",
        ),
        (
            ["name: adamx", "patience: 3"],
            "job.yaml:4: train.optimizer.patience: unknown key; valid keys are beta1_decay, "
            "beta1_schedule, betas, eps, lr, name, weight_decay",
        ),
        (
            ["name: adamx", "beta1_schedule: linear"],
            "job.yaml:4: train.optimizer.beta1_schedule: expected 'exponential' or 'harmonic', "
            'got "linear"',
        ),
        (
            ["name: adamx", "lr: 0.1", "beta1_decay: 0"],
            "job.yaml:5: train.optimizer.beta1_decay: expected a number greater than 0, got 0",
        ),
        (
            ["name: adamz", "patience: 2.5"],
            "job.yaml:4: train.optimizer.patience: expected a valid integer, got 2.5",
        ),
        (
            ["name: adamz", "overshoot_factor: 1.5"],
            "job.yaml:4: train.optimizer.overshoot_factor: expected a number less than or equal "
            "to 1, got 1.5",
        ),
        (
            ["name: adamz", "max_grad_norm: off"],
            'job.yaml:4: train.optimizer.max_grad_norm: expected a valid number, got "off"',
        ),
        (
            ["name: adamz", "lr: 0.1", "min_lr: 0.2"],
            "job.yaml:5: train.optimizer.min_lr: min_lr is above lr (0.1), got 0.2",
        ),
        (
            ["name: adamz", "max_lr: 0.001"],
            "job.yaml:4: train.optimizer.max_lr: max_lr is below lr (0.01), got 0.001",
        ),
    ],
)
def test_a_wrong_hyperparameter_is_refused_with_its_line(
    lines: list[str], fault: str, tmp_path: Path
) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("train:\n  optimizer:\n" + "".join(f"    {line}\n" for line in lines))
    with pytest.raises(ConfigError) as caught:
        load_config(str(path), ["train.schedule.name=constant"])
    assert caught.value.faults == [fault]


@pytest.mark.parametrize(
    ("schedule", "place"),
    [
        ("", "job.yaml:1"),
        ("  schedule: {name: cosine}\n", "job.yaml:3"),
        ("  schedule: {name: linear}\n", "job.yaml:3"),
    ],
)
def test_a_schedule_beside_adamz_is_refused(schedule: str, place: str, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("train:\n  optimizer: {name: adamz}\n" + schedule)
    with pytest.raises(ConfigError) as caught:
        load_config(str(path))
    name = "linear" if "linear" in schedule else "cosine"
    (fault,) = caught.value.faults
    assert fault.startswith(
        f"{place}: train.schedule: adamz adjusts the learning rate itself and a {name} schedule "
        f'would overwrite it; set train.schedule={{name: constant}}, got {{"name": "{name}"'
    )
    assert (
        load_config(str(path), ["train.schedule.name=constant"]).train.schedule.name == "constant"
    )


def events(stderr: str) -> dict[str, dict[str, Any]]:
    return {line["event"]: line for line in map(json.loads, stderr.splitlines())}


def test_adamx_trains_publishes_and_says_which_it_is(tmp_path: Path) -> None:
    settings = (*SMALL, "train.optimizer={name: Adam X, lr: 0.003}")
    done = run_job("train", *settings, "--output", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    said = events(done.stderr)
    assert "Phuong and Phong (2019, arXiv 1904.03590), Algorithm 2" in said["optimizer"]["message"]
    assert said["epoch"]["training_loss"] < 24  # the variance of the target
    folder = Path(done.stdout.strip())
    assert manifest_of(folder)["training"]["optimizer"] == "adamx"
    again = run_job("check", "--config", str(folder / "job.yaml"))
    assert again.returncode == 0, again.stderr


def test_adamz_trains_with_the_lr_that_its_losses_ask_for(tmp_path: Path) -> None:
    """One step an epoch, so that metrics.jsonl has every loss; their unit changes no rule."""
    keys: dict[str, Any] = {"patience": 5, "stagnation_period": 3, "stagnation_threshold": 0.4}
    optimizer = json.dumps({"name": "adamz", "lr": 0.2, **keys})
    settings = ("train.epochs=40", "train.batch_size=3200", "train.schedule.name=constant")
    done = run_job(
        "train",
        *SMALL,
        *settings,
        f"train.optimizer={optimizer}",
        "--output",
        str(tmp_path / "out"),
    )
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.strip())
    epochs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    expected = adamz_lr([epoch["training_loss"] for epoch in epochs], 0.2, **keys)
    assert [epoch["learning_rate"] for epoch in epochs] == pytest.approx(expected, rel=1e-12)
    changes = [b / a for a, b in itertools.pairwise(expected) if a != b]
    assert min(changes) < 1 < max(changes), "the case shows only one of the rules"
    assert "adamz_may_climb" not in events(done.stderr)  # max_lr is 5 lr


# One training row, whose standardised x and y are 0, and a linear model: the loss is its bias b as
# |b|, of gradient 1 or -1, by which Adam goes in steps of lr. So the losses can be scripted.
ONE_ROW = (
    *("data.samples=100", "data.test=0.32", "data.validation=0.67", "model.hidden=[]"),
    *("train.loss=mae", "train.schedule={name: constant}", "export.formats=[torchscript, onnx]"),
    *("device=cpu", "threads=1", "verify.batches=[1]"),
)


@pytest.mark.parametrize(
    ("keys", "epochs", "changes"),
    [
        # Steps too small for float32: L_t = max from the third on, and nothing else.
        pytest.param(
            {"lr": 1e-30, "patience": 3, "min_lr": 0.0}, 9, [1] * 2 + [0.5] * 7, id="flat"
        ),
        # Standard deviations of 3 and 20 equidistant losses: (8 / 399)^(1/2) = 0.14 < 0.2.
        pytest.param(
            {"lr": 1e-3, "patience": 20, "stagnation_period": 3, "max_lr": 1.6e-3},
            24,
            [1] * 19 + [1.2, 1.2, 1.6 / 1.44, 1, 1],
            id="a linear fall, and max_lr",
        ),
        # Windows of 2 and 1: a fall is stagnation, a rise both at once.
        pytest.param(
            {"lr": 0.15, "patience": 2, "stagnation_period": 1, "min_lr": 0.1, "betas": [0, 0]},
            6,
            [1, 1.2, 0.6, 1.2, 0.1 / 0.1296, 1.2],
            id="both at once, and min_lr",
        ),
    ],
)
def test_each_rule_of_adamz_by_the_real_command(
    keys: dict[str, Any], epochs: int, changes: list[float], tmp_path: Path
) -> None:
    optimizer = f"train.optimizer={json.dumps({'name': 'adamz', **keys})}"
    settings = (*ONE_ROW, optimizer, f"train.epochs={epochs}")
    done = run_job("train", *settings, "--output", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    lines = (Path(done.stdout.strip()) / "metrics.jsonl").read_text().splitlines()
    told = [json.loads(line) for line in lines]
    losses, rates = ([line[key] for line in told] for key in ("training_loss", "learning_rate"))
    rules = {name: value for name, value in keys.items() if name not in ("lr", "betas")}
    assert rates == pytest.approx(adamz_lr(losses, keys["lr"], **rules), rel=1e-12)
    seen = [after / before for before, after in itertools.pairwise([keys["lr"], *rates])]
    assert seen == pytest.approx(changes)
    warning = events(done.stderr).get("adamz_may_climb")
    assert (warning is not None) == (keys.get("max_lr", 1.0) > 10 * keys["lr"])
    if warning is not None:
        assert (warning["level"], warning["lr"], warning["max_lr"]) == ("warning", keys["lr"], 1.0)
        assert "lower train.optimizer.max_lr" in warning["message"]
