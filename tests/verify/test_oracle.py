"""The oracle is the model, its bound bounds, and both of its gates are silent for float32."""

import copy
from collections.abc import Iterator

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray

from job.config import Task
from job.errors import DataError
from job.model import ACTIVATIONS as MODULES
from job.verify.battery import Case, cases
from job.verify.compare import compare
from job.verify.engines import load_onnx
from job.verify.oracle import (
    ACTIVATIONS,
    TASKS,
    TINY,
    Oracle,
    U,
    _softmax,
    _softmax_with_bounds,
    widths,
)

from .models import Sample, any_sample, sample

Float32 = NDArray[np.float32]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("depth", range(7))
def test_the_oracle_is_torch_in_float64_and_its_bound_holds_torch_in_float32(
    activation: str, depth: int, task: Task
) -> None:
    hidden = (40, 3, 1, 25, 40, 7)[:depth]
    s = sample(depth, hidden, activation, outputs=3, gain=2, y_mean=30, task=task)
    oracle = s.oracle()(s.x)
    exact = copy.deepcopy(s.model).double()
    with torch.no_grad():
        wanted = exact(torch.from_numpy(s.x).double()).numpy()
    np.testing.assert_allclose(oracle.value, wanted, rtol=1e-13, atol=1e-13)
    assert (np.abs(s.answer(s.x) - oracle.value) <= oracle.bound).all()


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("seed", range(60))
def test_a_faithful_model_raises_no_alarm_on_any_input(seed: int, task: Task) -> None:
    s = any_sample(seed, widest=1024 if seed % 4 == 0 else 200, task=task)
    oracle = s.oracle()
    for case in cases(s.x, (1, 2, 3, 7, 64)):
        found = compare("model", "torch", case, s.answer(case.x), oracle(case.x))
        assert found.passed, found


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    ("gain", "x_std", "y_std"), [(1.0, 1e-36, 1.0), (1e-20, 1e-36, 1.0), (1e-38, 1.0, 1e30)]
)
def test_an_engine_that_flushes_subnormals_raises_no_alarm(
    activation: str, gain: float, x_std: float, y_std: float
) -> None:
    """It reads and writes zeros for subnormal inputs, weights, products and answers."""
    s = sample(0, (20, 20), activation, gain=gain, x_std=x_std, y_std=y_std)
    oracle = s.oracle()
    for case in cases(s.x, (64,)):
        if gain == 1e-38 and np.isinf(case.x).any():
            continue  # a weight that is read as 0 makes NaN of infinity, which is not excused
        expected = oracle(case.x)
        torch.set_flush_denormal(True)
        try:
            answer = s.answer(case.x)
        finally:
            torch.set_flush_denormal(False)
        found = compare("model", "torch", case, answer, expected)
        assert found.passed, found


def test_subnormal_inputs_are_among_the_cases() -> None:
    x = np.random.default_rng(0).normal(1, 0.1, (8, 2)).astype(np.float32)
    scaled = next(case.x for case in cases(x, (1,)) if case.name == "subnormal numbers")
    assert ((scaled != 0) & (np.abs(scaled) < TINY)).all()


def test_mirrored_inputs_are_among_the_cases() -> None:
    x = np.ones((8, 2), np.float32)
    assert any((case.x == -1).all() for case in cases(x, (1,)) if case.x.size)


@pytest.mark.parametrize("z", [1e38, 1.6e38, 2.5e38, 3.3e38, -3.3e38])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_what_overflows_in_some_engines_only_is_not_demanded(activation: str, z: float) -> None:
    s = sample(0, (1,), activation, features=1)
    for layer in (s.model.network[0], s.model.network[2]):
        torch.nn.init.ones_(layer.weight)  # type: ignore[arg-type]
        torch.nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    s.model.input.mean.zero_()
    s.model.input.std.fill_(1)
    x = np.full((9, 1), z, np.float32)
    assert np.isinf(s.oracle()(x).bound).all()


def test_rows_that_are_all_alike_raise_no_alarm() -> None:
    """One rounding error, repeated: the RMS then is no mean of anything."""
    for seed in range(100):
        s = sample(seed, (3, 3), "tanh", gain=2)
        x = np.repeat(s.x[:1], 40, axis=0)
        expected = s.oracle()(x)
        found = compare("model", "torch", cases(x, (40,))[0], s.answer(x), expected)
        assert found.passed, found


@pytest.mark.parametrize(("right", "wrong"), [("gelu", "silu"), ("relu", "leaky_relu")])
def test_in_a_deep_model_the_noise_finds_what_the_bound_lets_pass(right: str, wrong: str) -> None:
    s = sample(0, (256,) * 6, right)
    other = sample(0, (256,) * 6, wrong)
    case = cases(s.x, (64,))[0]
    expected = Oracle(s.model.weights(), right)(s.x)
    assert compare("model", "torch", case, s.answer(s.x), expected).passed
    found = compare("model", "torch", case, other.answer(s.x), expected)
    assert found.bound_used < 1
    assert "times what rounding can give" in str(found.fault)


def test_the_noise_of_one_sum_is_its_formula() -> None:
    """200 terms: 3 u |h| each on the way in, sqrt(201) u (|W| |h| + |b|) of the sum, 3 u after."""
    s = sample(0, (), "relu", features=200)
    noise = np.asarray(s.oracle()(s.x).noise)
    weights = {k: v.astype(np.float64) for k, v in s.model.weights().items()}
    w, b = weights["network.0.weight"], weights["network.0.bias"]
    h = (s.x - weights["input.mean"]) / weights["input.std"]
    y_std, y_mean = weights["output.std"], weights["output.mean"]
    came_in = 3 * U * np.sqrt(np.square(h) @ np.square(w).T)
    of_sum = np.sqrt(201) * U * (np.abs(h) @ np.abs(w).T + np.abs(b))
    after = 3 * U * (np.abs(h @ w.T + b) * y_std + np.abs(y_mean))
    wanted = np.sqrt(np.square(y_std) * (came_in**2 + of_sum**2) + after**2)
    ratio = np.sqrt(np.mean(np.square(noise)) / np.mean(np.square(wanted)))
    # 64 rows of 16 draws: a standard error of 2 in 100.
    assert ratio == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("seed", range(5))
def test_the_noise_is_a_positive_number_and_the_same_twice(seed: int) -> None:
    s = any_sample(seed, widest=50)
    oracle = s.oracle()
    noise = np.asarray(oracle(s.x).noise)
    assert noise.shape == (64, s.answer(s.x).shape[1])
    assert ((noise > 0) & np.isfinite(noise)).all()
    assert np.array_equal(noise, np.asarray(oracle(s.x).noise))


# The activations.


def arguments() -> Float32:
    z = np.concatenate([np.geomspace(1e-44, 1e37, 200_000), np.linspace(0, 30, 200_000)])
    return np.concatenate([z, -z]).astype(np.float32).reshape(-1, 8)


def one_operator(activation: str) -> bytes:
    make = onnx.helper.make_node
    nodes = {
        "relu": [make("Relu", ["input"], ["output"])],
        "leaky_relu": [make("LeakyRelu", ["input"], ["output"], alpha=0.01)],
        "gelu": [make("Gelu", ["input"], ["output"])],
        "silu": [make("Sigmoid", ["input"], ["s"]), make("Mul", ["input", "s"], ["output"])],
        "tanh": [make("Tanh", ["input"], ["output"])],
    }[activation]
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 8])
        for name in ("input", "output")
    ]
    graph = onnx.helper.make_graph(nodes, "one", values[:1], values[1:])
    opset = onnx.helper.make_opsetid("", 20)
    content: bytes = onnx.helper.make_model(
        graph, opset_imports=[opset], ir_version=9
    ).SerializeToString()
    return content


def engine_answers(activation: str, z: Float32) -> Iterator[tuple[str, Float32]]:
    for onednn in (True, False):
        # The public switch warns of a name that torch itself has deprecated.
        torch._C._set_mkldnn_enabled(onednn)
        try:
            yield f"torch, oneDNN {onednn}", MODULES[activation]()(torch.from_numpy(z)).numpy()
        finally:
            torch._C._set_mkldnn_enabled(True)
    for optimise in (True, False):
        run = load_onnx(one_operator(activation), optimise=optimise)
        answer = run(z)
        assert isinstance(answer, np.ndarray)
        yield f"onnxruntime {ort.__version__}, optimised {optimise}", answer


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_no_engine_adds_more_than_the_activations_own_error(activation: str) -> None:
    z = arguments()
    exact = MODULES[activation]()(torch.from_numpy(z).double()).numpy()
    ours = ACTIVATIONS[activation].value(z.astype(np.float64))
    assert (np.abs(ours - exact) <= 1e-13 * np.abs(exact) + 1e-15 * np.abs(z)).all()
    allowed = U * ACTIVATIONS[activation].own_error(np.abs(z).astype(np.float64)) + TINY
    for engine, got in engine_answers(activation, z):
        assert (np.abs(got - exact) <= allowed).all(), engine


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_slope_is_the_largest_slope(activation: str) -> None:
    z = torch.linspace(-20, 20, 400_001, dtype=torch.float64, requires_grad=True)
    MODULES[activation]()(z).sum().backward()
    assert z.grad is not None
    largest = float(z.grad.abs().max())
    assert largest <= ACTIVATIONS[activation].slope < 1.002 * largest


# The softmax.


def only_softmax(z: Float32) -> Sample:
    """A model of one layer that changes nothing, so that its answers are the softmax of x."""
    columns = z.shape[1]
    s = sample(0, (), "relu", features=columns, outputs=columns, task="classification")
    s.model.input.mean.zero_()
    s.model.input.std.fill_(1)
    torch.nn.init.eye_(s.model.network[0].weight)  # type: ignore[arg-type]
    torch.nn.init.zeros_(s.model.network[0].bias)  # type: ignore[arg-type]
    return s


def onnx_softmax(z: Float32, optimise: bool) -> Float32:
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", z.shape[1]])
        for name in ("input", "output")
    ]
    node = onnx.helper.make_node("Softmax", ["input"], ["output"], axis=1)
    graph = onnx.helper.make_graph([node], "one", values[:1], values[1:])
    opset = onnx.helper.make_opsetid("", 18)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8)
    answer = load_onnx(model.SerializeToString(), optimise=optimise)(z)
    assert isinstance(answer, np.ndarray)
    return answer


@pytest.mark.parametrize("columns", [2, 3, 10, 37])
@pytest.mark.parametrize("spread", [1e-6, 1.0, 20.0, 200.0, 1e6])
def test_the_softmax_of_every_engine_is_within_its_bound(columns: int, spread: float) -> None:
    draw = np.random.default_rng(columns)
    z = (spread * draw.standard_normal((20_000, columns))).astype(np.float32)
    expected = only_softmax(z).oracle()(z)
    exact = torch.softmax(torch.from_numpy(z).double(), 1).numpy()
    np.testing.assert_allclose(expected.value, exact, rtol=1e-13, atol=1e-300)
    answers = {
        "torch": torch.softmax(torch.from_numpy(z), 1).numpy(),
        "onnxruntime": onnx_softmax(z, optimise=False),
        "onnxruntime, optimised": onnx_softmax(z, optimise=True),
    }
    case = Case("softmax", z)
    for engine, answer in answers.items():
        found = compare("softmax", engine, case, answer, expected)
        assert found.passed, found
    assert (expected.bound < 1e-4 * (1 + spread)).all()


@pytest.mark.parametrize(
    ("z", "wanted"),
    [
        ([0.0, np.inf], [np.nan, np.nan]),
        ([0.0, -np.inf], [1.0, 0.0]),
        ([-np.inf, -np.inf], [np.nan, np.nan]),
        ([np.nan, 1.0], [np.nan, np.nan]),
        ([0.0, -1000.0], [1.0, 0.0]),
    ],
)
def test_where_the_softmax_is_a_limit(z: list[float], wanted: list[float]) -> None:
    """All engines and the oracle agree; one batch, since NaN in a row must stay in it."""
    rows = np.array([[1.0, 2.0], z, [3.0, 3.0]], np.float32)
    with np.errstate(all="ignore"):
        value = _softmax(rows.astype(np.float64))
    np.testing.assert_array_equal(value[1], wanted)
    for answer in (torch.softmax(torch.from_numpy(rows), 1).numpy(), onnx_softmax(rows, True)):
        np.testing.assert_array_equal(answer[1], np.array(wanted, np.float32))
        np.testing.assert_allclose(answer[[0, 2]], value[[0, 2]], rtol=1e-6)


def test_the_softmax_bound_follows_the_logits_error() -> None:
    """By hand: z = (0, 0) off by 0.1 gives p between 1 / (1 + exp 0.2) and 1 / (1 + exp -0.2)."""
    zeros = np.zeros((1, 2))
    p, bound, _ = _softmax_with_bounds(zeros, np.full((1, 2), 0.1))
    assert p.tolist() == [[0.5, 0.5]]
    assert bound[0] == pytest.approx(1 / (1 + np.exp(-0.2)) - 0.5, rel=1e-4)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_a_wrong_class_order_and_a_missing_softmax_are_found(activation: str) -> None:
    s = sample(0, (20,), activation, outputs=3, gain=3, task="classification")
    case, expected = Case("rows", s.x), s.oracle()(s.x)
    right = s.answer(s.x)
    assert compare("model", "torch", case, right, expected).passed
    swapped = compare("model", "torch", case, right[:, [1, 0, 2]].copy(), expected)
    with torch.no_grad():
        logits = s.model.network(s.model.input(torch.from_numpy(s.x))).numpy()
    bare = compare("model", "torch", case, logits, expected)
    for found in (swapped, bare):
        assert "outside the bound" in str(found.fault)


# Weights that are none.


@pytest.mark.parametrize(
    "change",
    [
        {"input.mean": None},
        {"output.std": None},
        {"network.0.bias": None},
        {"network.0.weight": np.zeros((5, 9), np.float32)},
        {"network.2.weight": np.zeros((1, 4), np.float32)},
        {"input.std": np.ones(1, np.float32)},
        {"input.std": np.ones((1, 10), np.float32)},
        {"output.mean": np.float32(0)},
        {"network.x.weight": np.zeros((1, 1), np.float32)},
        {"more": np.zeros(1, np.float32)},
        {"network.0.weight": np.float32(1)},
    ],
)
def test_weights_that_do_not_fit_together_are_refused(change: dict[str, Float32 | None]) -> None:
    weights = sample(0, (5,), "relu").model.weights()
    assert widths(weights) == [10, 5, 1]
    changed = {k: v for k, v in (weights | change).items() if v is not None}
    with pytest.raises(DataError, match="not the weights of a model"):
        widths(changed)


def test_no_weights_at_all_are_refused() -> None:
    with pytest.raises(DataError):
        widths({})
