"""The model: preprocessing inside, initialisation as a function of the seed."""

import numpy as np
import pytest
import torch
from torch import nn

from job.config import load_config
from job.model import MLP, FillAndStandardise, Scaling, Standardise, build_model

X = np.random.default_rng(0).normal(3, [1, 10, 0.1], (500, 3)).astype(np.float32)
Y = np.random.default_rng(1).normal(-7, 4, (500, 1)).astype(np.float32)


def test_the_layers_are_those_of_the_docstring() -> None:
    model = build_model(load_config(None), X, Y)
    kinds = [type(layer).__name__ for layer in model.network]
    assert kinds == ["Linear", "ReLU", "Linear"]
    assert [tuple(p.shape) for p in model.network.parameters()] == [
        (100, 3),
        (100,),
        (1, 100),
        (1,),
    ]


def test_without_hidden_layers_it_is_linear() -> None:
    model = build_model(load_config(None, ["model.hidden=[]"]), X, Y)
    a, b = torch.rand(1, 3), torch.rand(1, 3)
    middle = model((a + b) / 2)
    torch.testing.assert_close(middle, (model(a) + model(b)) / 2)


def test_statistics_are_those_of_the_rows() -> None:
    scaling = Scaling(3)
    scaling.fit(X)
    np.testing.assert_allclose(scaling.mean, X.astype(np.float64).mean(0), rtol=1e-6)
    np.testing.assert_allclose(scaling.std, X.astype(np.float64).std(0), rtol=1e-6)


def test_statistics_survive_a_large_offset() -> None:
    x = (np.arange(100_000) % 2).astype(np.float32)[:, None] + 1e6
    scaling = Scaling(1)
    scaling.fit(x.astype(np.float32))
    assert scaling.std.item() == pytest.approx(0.5, rel=1e-6)


def test_a_constant_column_is_only_shifted() -> None:
    scaling = Scaling(1)
    scaling.fit(np.full((50, 1), 4.25, np.float32))
    assert (scaling.mean.item(), scaling.std.item()) == (4.25, 1.0)


def test_raw_features_in_and_target_units_out() -> None:
    model = build_model(load_config(None), X, Y)
    nn.init.zeros_(model.network[-1].weight)  # type: ignore[arg-type]
    nn.init.zeros_(model.network[-1].bias)  # type: ignore[arg-type]
    # A network that answers 0 in standardised units answers the targets' mean.
    np.testing.assert_allclose(model(torch.from_numpy(X)).detach(), Y.mean(), rtol=1e-6)


def test_initial_weights_are_a_function_of_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = build_model(load_config(None, ["seed=4"]), X, Y).weights()
    torch.manual_seed(2)
    second = build_model(load_config(None, ["seed=4"]), X, Y).weights()
    other = build_model(load_config(None, ["seed=5"]), X, Y).weights()
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)
    assert not np.isin(first["network.0.weight"], other["network.0.weight"]).any()


def test_initial_weights_follow_the_rule_of_nn_linear() -> None:
    ours = build_model(load_config(None, ["model.hidden=[2000]"]), X, Y).network[0]
    theirs = nn.Linear(3, 2000)
    assert ours.weight.abs().max() < 3**-0.5  # type: ignore[operator]
    assert ours.weight.std().item() == pytest.approx(theirs.weight.std().item(), rel=0.05)  # type: ignore[operator]


def test_weights_are_copies_on_the_host() -> None:
    model = MLP(3, (4,), 1, "tanh")
    before = model.weights()["network.0.bias"].copy()
    assert set(model.weights()) == set(model.state_dict())
    assert before.dtype == np.float32


def test_what_is_missing_is_the_mean_of_what_is_there() -> None:
    nan = np.nan
    x = np.array([[1, nan, 5], [3, nan, 5], [nan, 2, nan], [5, 4, 5]], np.float32)
    layer = FillAndStandardise(3)
    layer.fit(x)
    np.testing.assert_allclose(layer.mean, [3, 3, 5])
    np.testing.assert_allclose(layer.std, [(8 / 3) ** 0.5, 1, 1])
    answers = layer(torch.from_numpy(x)).numpy()
    plain = Standardise(3)
    plain.load_state_dict({"mean": layer.mean, "std": layer.std})
    wanted = plain(torch.from_numpy(np.where(np.isnan(x), [3, 3, 5], x).astype(np.float32)))
    assert np.array_equal(answers, wanted.numpy())
    assert np.isposinf(layer(torch.full((1, 3), torch.inf)).numpy()).all()
