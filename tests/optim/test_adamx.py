"""AdamX against its equations, its closed form and hand-worked steps."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from job.optim import AdamX

from .reference import adamx, draw, parameter, require_close, through_files

STEPS = 20
BY_DEFAULT = [0.9 * 0.999**t for t in range(STEPS)]
# Keyword arguments, and the b1_t they must give.
SCHEDULES = [
    pytest.param({}, BY_DEFAULT, id="default"),
    pytest.param({"beta1_decay": 1.0}, [0.9] * STEPS, id="constant"),
    pytest.param({"beta1_decay": 0.9}, [0.9 ** (t + 1) for t in range(STEPS)], id="decay = b1"),
    pytest.param(
        {"beta1_schedule": "harmonic"}, [0.9 / (t + 1) for t in range(STEPS)], id="harmonic"
    ),
]


def step(optimizer: AdamX, weight: torch.nn.Parameter, gradient: Any) -> None:
    weight.grad = torch.as_tensor(gradient).to(weight.dtype)
    optimizer.step()


@pytest.mark.parametrize(("keys", "b1"), SCHEDULES)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("more", [{}, {"lr": 0.1, "eps": 0.0}, {"lr": 0.1, "weight_decay": 0.3}])
def test_it_is_algorithm_2(
    keys: dict[str, Any], b1: list[float], dtype: torch.dtype, bound: float, more: dict[str, Any]
) -> None:
    x, gradients = draw(STEPS)
    xs, _ = adamx(x, gradients, b1, **more)
    weight = parameter(x, dtype)
    optimizer = AdamX([weight], **keys, **more)
    for gradient, expected in zip(gradients, xs, strict=True):
        step(optimizer, weight, gradient)
        require_close(weight, expected, bound)


@pytest.mark.parametrize(("keys", "b1"), SCHEDULES)
def test_vhat_is_its_closed_form(keys: dict[str, Any], b1: list[float]) -> None:
    x, gradients = draw(STEPS)
    _, vhats = adamx(x, gradients, b1)
    weight = parameter(x)
    optimizer = AdamX([weight], **keys)
    for gradient, expected in zip(gradients, vhats, strict=True):
        step(optimizer, weight, gradient)
        got = optimizer.state[weight]["max_exp_avg_sq"].numpy()
        np.testing.assert_allclose(got, expected, rtol=1e-10, atol=0)


def test_two_steps_by_hand() -> None:
    """b1 = 1/2 halved at each step, b2 = 3/4, g = 2 then 0: m = 1, 1/4; v = 1, 3/4; the maximum is
    (3/4 / 1/2)^2 = 9/4 of the first. Steps of 1 / 1 and 1/4 / 3/2 = 1/6."""
    weight = parameter([1.0])
    optimizer = AdamX([weight], lr=1.0, betas=(0.5, 0.75), eps=0.0, beta1_decay=0.5)
    step(optimizer, weight, [2.0])
    assert weight.item() == 0.0
    step(optimizer, weight, [0.0])
    assert weight.item() == pytest.approx(-1 / 6, abs=1e-15)


def test_the_first_steps_are_as_long_as_its_docstring_says() -> None:
    weight = parameter([0.0])
    optimizer = AdamX([weight], lr=1.0)
    places = [0.0]
    for _ in range(20):
        step(optimizer, weight, [1.0])
        places.append(weight.item())
    lengths = -np.diff(places)
    assert lengths[0] == pytest.approx(3.16, abs=0.005)
    assert lengths.argmax() + 1 == 12
    assert lengths.max() == pytest.approx(6.7, abs=0.05)


@pytest.mark.parametrize("eps", [0.0, 1e-8])
@pytest.mark.parametrize(("keys", "b1"), SCHEDULES)
def test_a_weight_whose_gradient_was_always_zero_does_not_move(
    eps: float, keys: dict[str, Any], b1: list[float]
) -> None:
    weight = parameter([1.25, 1.25], torch.float32)
    optimizer = AdamX([weight], lr=0.1, eps=eps, **keys)
    for _ in range(STEPS):
        step(optimizer, weight, [0.0, 1.0])
    assert weight[0].item() == 1.25
    assert weight[1].item() < 1


def test_a_gradient_whose_square_underflows_is_no_division_by_zero() -> None:
    weight = parameter([1.0], torch.float32)
    step(AdamX([weight], eps=0.0), weight, [1e-30])
    assert weight.item() == 1.0


def test_groups_keep_their_own_hyperparameters() -> None:
    x, gradients = draw(STEPS)
    first, second = parameter(x), parameter(x)
    groups: Any = [{"params": [first]}, {"params": [second], "lr": 0.1, "beta1_decay": 1.0}]
    optimizer = AdamX(groups, lr=0.01)
    for gradient in gradients:
        second.grad = torch.tensor(gradient)
        step(optimizer, first, gradient)
    require_close(first, adamx(x, gradients, BY_DEFAULT, lr=0.01)[0][-1], 1e-10)
    require_close(second, adamx(x, gradients, [0.9] * STEPS, lr=0.1)[0][-1], 1e-10)


def test_a_parameter_without_a_gradient_is_left_alone() -> None:
    """And its steps are counted from its own first gradient on."""
    x, gradients = draw(STEPS)
    late, weight = parameter(x), parameter(x)
    optimizer = AdamX([late, weight], weight_decay=0.3)
    step(optimizer, weight, gradients[0])
    assert torch.equal(late, torch.tensor(x))
    assert late not in optimizer.state
    late.grad = torch.tensor(gradients[0])
    step(optimizer, weight, gradients[1])
    require_close(late, adamx(x, gradients[:1], [0.9], weight_decay=0.3)[0][0], 1e-10)


def test_a_closure_is_called_once_with_gradients_and_its_loss_returned() -> None:
    weight, other = parameter([3.0]), parameter([3.0])
    optimizer = AdamX([weight])
    calls = []

    def closure() -> float:
        calls.append(torch.is_grad_enabled())
        loss = (weight**2).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    assert optimizer.step(closure) == 9.0
    assert calls == [True]
    step(AdamX([other]), other, [6.0])
    assert torch.equal(weight, other)


@pytest.mark.parametrize("keys", [{}, {"beta1_schedule": "harmonic"}])
def test_a_run_that_was_saved_and_loaded_ends_with_equal_bits(keys: dict[str, Any]) -> None:
    x, gradients = draw(STEPS)
    weight, resumed = parameter(x, torch.float32), parameter(x, torch.float32)
    optimizer = AdamX([weight], lr=0.1, **keys)
    for gradient in gradients[:9]:
        step(optimizer, weight, gradient)
    fresh = AdamX([resumed])
    fresh.load_state_dict(through_files(optimizer.state_dict()))
    with torch.no_grad():
        resumed.copy_(weight)
    for gradient in gradients[9:]:
        step(optimizer, weight, gradient)
        step(fresh, resumed, gradient)
        assert torch.equal(weight, resumed)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"lr": -1.0}, "lr must be finite and at least 0, got -1.0"),
        ({"lr": math.nan}, "lr must be"),
        ({"betas": (0.9, 1.0)}, r"betas must be two numbers in \[0, 1\), got \(0.9, 1.0\)"),
        ({"betas": (-0.1, 0.9)}, "betas must be"),
        ({"betas": (0.9,)}, "betas must be"),
        ({"eps": -1e-8}, "eps must be"),
        ({"eps": math.inf}, "eps must be"),
        ({"beta1_decay": 0.0}, r"beta1_decay must be in \(0, 1\], got 0.0"),
        ({"beta1_decay": 1.1}, "beta1_decay must be"),
        ({"beta1_schedule": "linear"}, "beta1_schedule must be 'exponential' or 'harmonic'"),
        ({"weight_decay": -1.0}, "weight_decay must be"),
    ],
)
def test_a_hyperparameter_outside_its_bounds_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^AdamX: {message}"):
        AdamX([parameter([1.0])], **keys)
