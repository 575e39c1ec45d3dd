"""The job's own backward pass, against torch.autograd: its gradients, 1,000 steps, its limits."""

import copy
import itertools
import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from job.config import load_config
from job.data import load_data
from job.errors import Diverged
from job.model import ACTIVATIONS, build_model
from job.optim import make_optimizer, updater
from job.train import train
from job.train.backprop import (
    FEW,
    NUMBERS,
    ROWS,
    Backpropagation,
    DeviceBackpropagation,
    why_autograd,
)
from job.train.step import Autograd

CPU = torch.device("cpu")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
# AdamZ's control of the learning rate is off: it turns rounding into other rates.
OPTIMIZERS = {
    "adam": {},
    "adamw": {},
    "adamx": {},
    "adamz": {"overshoot_factor": 1, "stagnation_factor": 1},
    "sgd": {},
}
N = 4 * ROWS + 300  # four whole blocks and a part


def network(widths: tuple[int, ...], activation: str = "relu") -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Sequential()
    for inputs, outputs in itertools.pairwise(widths):
        layers.extend([nn.Linear(inputs, outputs), ACTIVATIONS[activation]()])
    return nn.Sequential(*list(layers)[:-1])


def rows(widths: tuple[int, ...], loss: str) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    x = torch.randn(N, widths[0])
    if loss == "cross_entropy":
        return x, torch.randint(widths[-1], (N,))
    return x, torch.randn(N, widths[-1])


def function(loss: str) -> nn.Module:
    return nn.CrossEntropyLoss() if loss == "cross_entropy" else nn.MSELoss()


def optimizer(engine: Backpropagation | Autograd, name: str) -> torch.optim.Optimizer:
    config = load_config(
        None,
        [
            "train.schedule.name=constant",
            f"train.optimizer={json.dumps({'name': name, 'lr': 0.003, **OPTIMIZERS[name]})}",
        ],
    )
    return make_optimizer(engine.parameters, config.train.optimizer)


def compare_with_autograd(
    widths: tuple[int, ...],
    activation: str,
    loss: str,
    n: int = N,
    kind: type[Backpropagation] = Backpropagation,
    device: str = "cpu",
) -> None:
    x, y = rows(widths, loss)
    if y.ndim == 2:
        y += 1  # else what adds up to a bias's gradient may cancel, and leave rounding alone
    plain = network(widths, activation)
    exact = copy.deepcopy(plain).double()
    batch = torch.randperm(N).numpy()[:n]
    expected = function(loss)(
        exact(x[batch].double()), y[batch] if y.ndim == 1 else y[batch].double()
    )
    expected.backward()
    engine = kind(plain.to(device), x.to(device), y.to(device))
    engine.differentiate(np.arange(n), n)  # leaves nothing in its buffers
    got = engine.differentiate(batch, len(batch))
    assert got == pytest.approx(expected.item(), rel=1e-6)
    for mine, its in zip(plain.parameters(), exact.parameters(), strict=True):
        assert mine.grad is not None
        assert its.grad is not None
        assert mine.grad.shape == its.grad.shape
        assert (mine.grad.cpu() - its.grad).abs().max() < 2e-6 * its.grad.abs().max()


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("widths", [(7, 3), (7, 30, 3), (7, 30, 20, 10, 3)])
def test_the_gradient_of_every_layer_is_autograds(
    widths: tuple[int, ...], activation: str, loss: str
) -> None:
    """To float32's rounding, with autograd in float64 as the truth."""
    compare_with_autograd(widths, activation, loss)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    "widths", [(7, 1), (7, 30, 1), (7, 30, 20, 1), (7, 30, 1, 3), (7, 2 * NUMBERS // ROWS, 1)]
)
def test_of_a_layer_with_one_output_too(widths: tuple[int, ...], activation: str) -> None:
    """Its delta goes back in two factors. The wide one goes through in smaller blocks."""
    compare_with_autograd(widths, activation, "mse")


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("widths", [(7, 30, 3), (7, 30, 1), (7, 30, 20, 1)])
@pytest.mark.parametrize("n", [129, 191])
def test_of_so_few_rows_that_columns_of_zeros_are_added(
    n: int, widths: tuple[int, ...], activation: str
) -> None:
    compare_with_autograd(widths, activation, "mse", n)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_cuda)])
@pytest.mark.parametrize("n", [FEW - 1, FEW])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("widths", [(7, 3), (7, 30, 1), (7, 30, 20, 10, 3), (7, 30, 20, 1)])
def test_of_the_one_for_cuda_too(
    widths: tuple[int, ...], activation: str, n: int, device: str
) -> None:
    compare_with_autograd(widths, activation, "mse", n, DeviceBackpropagation, device)


def test_a_batch_is_the_rows_of_these_numbers_whatever_was_before() -> None:
    """Buffers are used again: nothing of one batch may be left in the next."""
    x, y = rows((7, 30, 3), "mse")
    used, new = (Backpropagation(network((7, 30, 3)), x, y) for _ in range(2))
    for size in (N, 5, ROWS, 1):
        used.differentiate(torch.randperm(N).numpy()[:size], size)
    batch = torch.randperm(N).numpy()[:5]
    assert used.differentiate(batch, 5) == new.differentiate(batch, 5)
    assert torch.equal(used.gradient, new.gradient)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_after_1000_steps_it_is_where_autograd_is(name: str, loss: str) -> None:
    """No farther from a float64 training than autograd's own float32 is, within a factor."""
    widths = (7, 20, 10, 3)
    x, y = rows(widths, loss)
    y = torch.tanh(x[:, :3]) if loss == "mse" else x[:, :3].argmax(dim=1)
    nets = [network(widths, "tanh") for _ in range(3)]
    nets[2].double()
    engines: list[Backpropagation | Autograd] = [Backpropagation(nets[0], x, y, grad_clip=1.0)]
    for net, dtype in ((nets[1], torch.float32), (nets[2], torch.float64)):
        target = y if y.ndim == 1 else y.to(dtype)
        engines.append(
            Autograd(net, function(loss), x.to(dtype), target, grad_clip=1.0, bfloat16=False)
        )
    optimizers = [optimizer(engine, name) for engine in engines]
    updates = [updater(of) for of in optimizers]
    for step in range(1000):
        batch = np.random.default_rng(step).permutation(N)[:40]
        for engine, update in zip(engines, updates, strict=True):
            engine.step(batch, update)
    with torch.no_grad():
        mine, autograds, exact = (net.double()(x.double()) for net in nets)
    start = network(widths, "tanh").double()(x.double())
    assert (exact - start).abs().max() > 0.1  # something was learnt
    assert (mine - exact).abs().max() < 3 * (autograds - exact).abs().max()
    if name == "adamz":  # each told it the losses
        losses = [of.param_groups[0]["losses"] for of in optimizers]
        assert losses[0] == pytest.approx(losses[2], rel=1e-4)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_update_is_the_optimizers_step_bit_for_bit(name: str) -> None:
    start = torch.linspace(-1, 1, 50)
    nets = [nn.Parameter(start.clone(), requires_grad=False) for _ in range(2)]
    config = load_config(None, ["train.schedule.name=constant", f"train.optimizer.name={name}"])
    mine, its = (make_optimizer([net], config.train.optimizer) for net in nets)
    for net in nets:
        net.grad = torch.zeros(50)
    update = updater(mine)
    for step in range(5):
        for net, of in zip(nets, (mine, its), strict=True):
            assert net.grad is not None
            net.grad.copy_(torch.cos(net * step))
            of.param_groups[0]["lr"] = 0.01 / (1 + step)  # as a schedule does
        update(1.0 / (1 + step))
        its.step(partial(float, 1.0 / (1 + step)))
    assert torch.equal(*nets)
    states = [of.state_dict()["state"].get(0, {}) for of in (mine, its)]
    for key, value in states[0].items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(states[1][key]))


def test_gradients_are_clipped_as_torch_does() -> None:
    x, y = rows((7, 30, 3), "mse")
    nets = [network((7, 30, 3)) for _ in range(2)]
    engines: list[Backpropagation | Autograd] = [
        Backpropagation(nets[0], x, y, grad_clip=0.05),
        Autograd(nets[1], nn.MSELoss(), x, y, grad_clip=0.05, bfloat16=False),
    ]
    for engine in engines:
        engine.step(np.arange(N), updater(torch.optim.SGD(engine.parameters, lr=1.0)))
    start = network((7, 30, 3))
    for mine, its, before in zip(*(net.parameters() for net in (*nets, start)), strict=True):
        torch.testing.assert_close(mine, its)
        assert not torch.equal(mine, before)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_a_loss_that_is_not_finite_stops_before_the_update(value: float) -> None:
    x, y = rows((7, 30, 3), "mse")
    x[17, 2] = value
    engine = Backpropagation(network((7, 30, 3)), x, y)
    before = engine.flat.detach().clone()
    with pytest.raises(Diverged, match=r"the loss is (nan|inf), "):
        engine.step(np.arange(N), updater(torch.optim.SGD(engine.parameters, lr=0.1)))
    assert torch.equal(engine.flat, before)


def test_a_gradient_that_is_not_finite_stops_before_the_update_and_is_named() -> None:
    """The error 1e19 has a finite square; times the input 1e25 it is no float32."""
    layer = nn.Linear(1, 1)
    nn.init.zeros_(layer.weight)
    engine = Backpropagation(nn.Sequential(layer), torch.tensor([[1e25]]), torch.tensor([[1e19]]))
    before = engine.flat.detach().clone()
    with pytest.raises(Diverged, match=r"the gradient of 0\.weight is not finite"):
        engine.step(np.arange(1), updater(torch.optim.SGD(engine.parameters, lr=0.1)))
    assert torch.equal(engine.flat, before)


def test_large_finite_gradients_are_not_taken_for_divergence() -> None:
    """Their sum of squares overflows float32; they themselves do not."""
    layer = nn.Linear(1, 1)
    nn.init.zeros_(layer.weight)
    engine = Backpropagation(nn.Sequential(layer), torch.tensor([[1e15]]), torch.tensor([[1e10]]))
    engine.step(np.arange(1), updater(torch.optim.SGD(engine.parameters, lr=1e-30)))
    assert math.isinf(torch.dot(engine.gradient, engine.gradient).item())
    assert layer.weight.item() == pytest.approx(2e-5)  # lr 2 1e15 1e10


def test_after_release_the_weights_are_the_networks_own() -> None:
    x, y = rows((7, 30, 3), "mse")
    net = network((7, 30, 3))
    engine = Backpropagation(net, x, y)
    engine.step(np.arange(N), updater(torch.optim.SGD(engine.parameters, lr=0.1)))
    trained = [p.detach().clone() for p in net.parameters()]
    engine.release()
    engine.flat.data.zero_()
    for parameter, value in zip(net.parameters(), trained, strict=True):
        assert torch.equal(parameter, value)
        assert parameter.is_contiguous()
        assert parameter.grad is None
    net(x).sum().backward()  # autograd takes them
    assert all(parameter.grad is not None for parameter in net.parameters())


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("model.dropout=0.1", "model.dropout is above 0"),
        ("train.loss=mae", "train.loss is mae"),
        ("train.loss=huber", "train.loss is huber"),
        ("train.precision=bfloat16", "train.precision is bfloat16"),
        ("train.label_smoothing=0.1", "train.class_weights or train.label_smoothing is set"),
        ("train.class_weights=[1, 2]", "train.class_weights or train.label_smoothing is set"),
        ("train.precision=tf32", None),  # float32 on a CPU
        ("train.grad_clip=1", None),
        ("train.loss=mse", None),
    ],
)
def test_what_it_does_not_cover_runs_on_autograd_and_the_log_says_why(
    override: str, reason: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = ["data.samples=400", "train.epochs=1", override]
    if "class" in override or "smoothing" in override:
        keys += ["data.kind=gaussians", "train.loss=cross_entropy"]
    config = load_config(None, keys)
    assert why_autograd(config, CPU) == reason
    caplog.set_level("INFO")
    data = load_data(config.data, 0, 2**40)
    model = build_model(config, data.training.x, data.training.y, len(data.classes))
    train(model, data, config, CPU, tmp_path, lambda _: None)
    assert ("torch.autograd computes" in caplog.text) == (reason is not None)
    if reason is not None:
        assert reason in caplog.text


def test_on_cuda_it_is_for_squared_errors() -> None:
    classes = load_config(None, ["data.kind=gaussians", "train.loss=cross_entropy"])
    cuda = torch.device("cuda")
    assert why_autograd(load_config(None, []), cuda) is None
    assert why_autograd(classes, cuda) == "train.loss is cross_entropy, on CUDA"
