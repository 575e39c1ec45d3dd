"""AdamZ: its learning rate on scripted losses, its clipping, its step and its history."""

import copy
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from job.optim import AdamZ

from .reference import adam, adamz_lr, draw, parameter, require_close, through_files

STEPS = 20
SHORT: dict[str, Any] = {"patience": 4, "stagnation_period": 2}


def step(optimizer: AdamZ, weight: torch.nn.Parameter, gradient: Any, loss: float) -> None:
    weight.grad = torch.as_tensor(gradient).to(weight.dtype)
    optimizer.step(loss=loss)


def rates(losses: list[float], lr: float = 0.01, **keys: Any) -> list[float]:
    """lr of each step."""
    optimizer = AdamZ([parameter([1.0])], lr=lr, **keys)
    told = []
    for loss in losses:
        optimizer.step(loss=loss)
        told.append(optimizer.param_groups[0]["lr"])
    return told


@pytest.mark.parametrize(
    ("losses", "factors"),
    [
        pytest.param([4, 3, 2, 5, 4, 3], [1, 1, 1, 0.5, 0.5, 0.5], id="overshoot"),
        pytest.param([9, 5, 1, 1.1], [1, 1, 1, 1.2], id="stagnation"),
        pytest.param([1, 1, 9, 9, 1], [1, 1, 1, 0.6, 0.6], id="both at once"),
        pytest.param([2, 2, 2, 2, 2], [1, 1, 1, 0.5, 0.25], id="flat is overshoot"),
        pytest.param([5, 9, 4, 3, 5, 1], [1, 1, 1, 1, 1, 1], id="neither"),
        pytest.param([9, 8, 1, 3, 8, 2], [1, 1, 1, 1, 0.5, 0.5], id="the window moves on"),
    ],
)
def test_each_rule_by_hand(losses: list[float], factors: list[float]) -> None:
    assert rates(losses, **SHORT) == pytest.approx([0.01 * factor for factor in factors])


@pytest.mark.parametrize("loss", [1.0, 0.1, 0.3, 1 / 3, 1e-9, 123456.789])
def test_a_flat_loss_is_overshoot_and_never_stagnation(loss: float) -> None:
    """Whatever its value: the rounded mean of equal numbers need not be that number."""
    expected = [0.01] * 99 + [0.01 / 2**k for k in (1, 2, 3)]
    assert rates([loss] * 102) == pytest.approx(expected, rel=1e-12)


def test_a_linear_fall_is_stagnation_and_lr_climbs_to_its_bound() -> None:
    """Standard deviations of 10 and 100 equidistant numbers: (99 / 9999)^(1/2) = 0.0995."""
    fall = [1000.0 - t for t in range(160)]
    climbing = rates(fall)
    assert climbing[98:101] == pytest.approx([0.01, 0.012, 0.0144])
    assert climbing[-1] == 1.0
    assert set(rates(fall, stagnation_threshold=0.0994)) == {0.01}
    assert rates(fall, stagnation_threshold=0.0996)[-1] == 1.0


@pytest.mark.parametrize(("lr", "clamped"), [(2.0, 1.0), (1e-9, 1e-7), (0.5, 0.5)])
def test_lr_is_clamped_from_the_first_step_on(lr: float, clamped: float) -> None:
    """And that step is taken with the clamped one: Adam's first is lr long."""
    weight = parameter([1.0])
    optimizer = AdamZ([weight], lr=lr, eps=0.0)
    step(optimizer, weight, [0.5], loss=1.0)
    assert optimizer.param_groups[0]["lr"] == clamped
    assert 1 - weight.item() == pytest.approx(clamped, rel=1e-6)


def test_lr_never_falls_below_its_bound() -> None:
    assert rates([2.0] * 60, **SHORT)[-1] == 1e-7


@settings(max_examples=200, deadline=None)
@given(
    losses=st.lists(st.integers(0, 40), min_size=1, max_size=40),
    patience=st.integers(1, 12),
    period=st.integers(1, 12),
    threshold=st.sampled_from([0.0, 0.2003, 0.7103, 1.3003]),
)
def test_lr_is_that_of_the_rules(
    losses: list[int], patience: int, period: int, threshold: float
) -> None:
    """Small integers: equal losses are common, and a flat series is exactly flat in NumPy too. The
    thresholds are odd, so that rounding does not decide."""
    keys: dict[str, Any] = {
        "patience": patience,
        "stagnation_period": period,
        "stagnation_threshold": threshold,
        "min_lr": 0.004,
        "max_lr": 0.03,
    }
    assert rates([float(n) for n in losses], **keys) == pytest.approx(
        adamz_lr(losses, 0.01, **keys), rel=1e-12
    )


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_it_is_its_equations(dtype: torch.dtype, bound: float, weight_decay: float) -> None:
    x, gradients = draw(STEPS)
    losses = np.random.default_rng(1).uniform(1, 2, STEPS).tolist()
    keys = {**SHORT, "stagnation_threshold": 0.5}
    lr = adamz_lr(losses, 0.05, **keys)
    assert {b > a for a, b in itertools.pairwise(lr) if a != b} == {True, False}
    xs = adam(x, gradients, lr, max_norm=2.0, weight_decay=weight_decay)
    weight = parameter(x, dtype)
    optimizer = AdamZ([weight], lr=0.05, max_grad_norm=2.0, weight_decay=weight_decay, **keys)
    for gradient, loss, expected in zip(gradients, losses, xs, strict=True):
        step(optimizer, weight, gradient, loss)
        require_close(weight, expected, bound)


def test_it_is_torchs_clipping_and_then_torchs_adam_to_the_bit() -> None:
    """Over two groups, whose gradients are clipped together."""
    x, gradients = draw(STEPS)
    losses = np.random.default_rng(1).uniform(1, 2, STEPS).tolist()
    lr = adamz_lr(losses, 0.05, **SHORT)
    ours, torchs = ([parameter(x[:5]), parameter(x[5:])] for _ in range(2))
    optimizer = AdamZ([{"params": [w]} for w in ours], lr=0.05, max_grad_norm=4.0, **SHORT)
    reference = torch.optim.Adam([{"params": [w]} for w in torchs])
    norms = []
    for t in range(STEPS):
        for weights in (ours, torchs):
            weights[0].grad = torch.tensor(gradients[t, :5])
            weights[1].grad = torch.tensor(gradients[t, 5:])
        norms.append(float(torch.nn.utils.clip_grad_norm_(torchs, 4.0)))
        for group in reference.param_groups:
            group["lr"] = lr[t]
        reference.step()
        optimizer.step(loss=losses[t])
        assert all(torch.equal(a, b) for a, b in zip(ours, torchs, strict=True))
    assert min(norms) < 4 < max(norms)


def test_each_group_has_its_own_lr_and_control() -> None:
    weights = [parameter([1.0]) for _ in range(3)]
    groups: Any = [
        {"params": [weights[0]]},
        {"params": [weights[1]], "lr": 0.1},
        {"params": [weights[2]], "lr": 0.1, "patience": 2, "overshoot_factor": 0.1},
    ]
    optimizer = AdamZ(groups, lr=0.01, eps=0.0, **SHORT)
    for loss in (4, 3, 2, 5):
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        before = [weight.item() for weight in weights]
        optimizer.step(loss=loss)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.005, 0.05, 0.01])
    moved = [b - weight.item() for b, weight in zip(before, weights, strict=True)]
    assert moved == pytest.approx([0.005, 0.05, 0.01])


def test_a_group_that_is_added_later_is_controlled_too() -> None:
    optimizer = AdamZ([parameter([1.0])], **SHORT)
    optimizer.add_param_group({"params": [parameter([1.0])]})
    for loss in (4, 3, 2, 5):
        optimizer.step(loss=loss)
    assert [group["lr"] for group in optimizer.param_groups] == [0.005, 0.005]


def test_a_parameter_without_a_gradient_is_left_alone() -> None:
    weight, other = parameter([1.0]), parameter([1.0])
    optimizer = AdamZ([weight, other], weight_decay=0.3)
    step(optimizer, weight, [1.0], loss=1.0)
    assert other.item() == 1.0
    assert weight.item() < 1.0
    assert other not in optimizer.state


def test_a_closure_gives_the_loss_as_well() -> None:
    weight, other = parameter([3.0]), parameter([3.0])
    by_closure, by_loss = AdamZ([weight], **SHORT), AdamZ([other], **SHORT)
    calls = []

    def closure() -> torch.Tensor:
        calls.append(torch.is_grad_enabled())
        by_closure.zero_grad()
        loss: torch.Tensor = (weight**2).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    for t in range(6):
        expected = weight.item() ** 2
        step(by_loss, other, [2 * other.item()], expected)
        assert by_closure.step(closure) == expected
        assert calls == [True] * (t + 1)
        assert torch.equal(weight, other)
    assert by_closure.param_groups[0]["losses"] == by_loss.param_groups[0]["losses"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"steers its learning rate by the loss: call step\(loss=loss\), or step\(closure\)"),
        ({"closure": lambda: None}, "with a closure that returns it"),
        ({"closure": lambda: 1.0, "loss": 1.0}, "not by both"),
        ({"loss": math.nan}, "the loss is nan; it must be finite"),
        ({"loss": torch.tensor(math.inf)}, "the loss is inf; it must be finite"),
    ],
)
def test_a_step_without_one_finite_loss_is_refused(arguments: dict[str, Any], message: str) -> None:
    weight = parameter([1.0])
    weight.grad = torch.ones_like(weight)
    optimizer = AdamZ([weight])
    with pytest.raises(ValueError, match=message):
        optimizer.step(**arguments)
    assert weight.item() == 1.0
    assert optimizer.param_groups[0]["losses"] == []


def test_a_run_that_was_saved_and_loaded_ends_with_equal_bits() -> None:
    """Saved before the windows are full, and after; the fresh one begins with other settings."""
    x, gradients = draw(40)
    losses = np.random.default_rng(5).uniform(1, 2, 40).tolist()
    keys: dict[str, Any] = {"patience": 6, "stagnation_period": 3, "stagnation_threshold": 0.5}
    weight, resumed = parameter(x, torch.float32), parameter(x, torch.float32)
    optimizer = AdamZ([weight], lr=0.05, **keys)
    seen = set()
    for t in range(40):
        if t in (3, 21):
            fresh = AdamZ([resumed])
            fresh.load_state_dict(through_files(optimizer.state_dict()))
            with torch.no_grad():
                resumed.copy_(weight)
        step(optimizer, weight, gradients[t], losses[t])
        if t >= 3:
            step(fresh, resumed, gradients[t], losses[t])
            assert torch.equal(weight, resumed)
            assert fresh.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
            seen.add(optimizer.param_groups[0]["lr"])
    assert len(seen) > 5


def test_a_saved_history_does_not_go_on() -> None:
    optimizer = AdamZ([parameter([1.0])])
    optimizer.step(loss=1.0)
    saved = optimizer.state_dict()
    before = copy.deepcopy(saved)
    optimizer.step(loss=2.0)
    assert saved["param_groups"] == before["param_groups"]
    assert saved["param_groups"][0]["losses"] == [1.0]


def test_a_copied_optimizer_goes_on_as_the_original() -> None:
    weight = parameter([1.0])
    twin = copy.deepcopy(AdamZ([weight], lr=0.05))
    twin.step(loss=1.0)
    assert twin.param_groups[0]["losses"] == [1.0]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"overshoot_factor": 0.0}, r"AdamZ: overshoot_factor must be in \(0, 1\], got 0.0"),
        ({"overshoot_factor": 1.5}, "AdamZ: overshoot_factor must be"),
        ({"stagnation_factor": 0.9}, "AdamZ: stagnation_factor must be finite and at least 1"),
        ({"stagnation_threshold": math.nan}, "AdamZ: stagnation_threshold must be"),
        ({"patience": 0}, "AdamZ: patience must be an integer of at least 1, got 0"),
        ({"patience": 2.5}, "AdamZ: patience must be an integer"),
        ({"stagnation_period": 0}, "AdamZ: stagnation_period must be"),
        ({"max_grad_norm": 0.0}, "AdamZ: max_grad_norm must be above 0"),
        ({"min_lr": -1.0}, "AdamZ: min_lr must be"),
        ({"min_lr": 0.1, "max_lr": 0.01}, r"AdamZ: max_lr must be finite and at least min_lr"),
        ({"max_lr": math.inf}, "AdamZ: max_lr must be"),
        ({"lr": -1.0}, "learning rate"),
        ({"betas": (1.0, 0.9)}, "beta"),
        ({"eps": -1.0}, "epsilon"),
        ({"weight_decay": -1.0}, "weight_decay"),
    ],
)
def test_a_hyperparameter_outside_its_bounds_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdamZ([parameter([1.0])], **keys)
