"""Real exports: faithful ones of many shapes pass, and wrong ones that are hard to see do not."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from job.config import Task
from job.export import trace, write_torchscript
from job.model import MLP
from job.verify import Reference, verify_files, verify_staged

from .models import Sample, any_sample, sample, trained

FAITHFUL = {
    "linear, three outputs": lambda: sample(0, (), "relu", outputs=3),
    "deep and wide": lambda: sample(1, (256,) * 6, "gelu"),
    "deep and narrow": lambda: sample(2, (1,) * 6, "tanh", gain=3),
    "very wide": lambda: sample(3, (1024,), "silu", outputs=2),
    "large targets": lambda: sample(4, (30, 30), "leaky_relu", y_mean=1e9, y_std=1e3),
    "answers near zero": lambda: sample(5, (30,), "relu", y_std=1e-20, gain=1e-3),
    "far from zero": lambda: sample(6, (30,), "gelu", x_mean=1e4, x_std=1e-1),
    "tiny features": lambda: sample(7, (30,), "tanh", x_std=1e-30),
    "three classes": lambda: sample(9, (30,), "relu", outputs=3, task="classification"),
    "sure classes": lambda: sample(10, (40, 9), "gelu", outputs=2, gain=9, task="classification"),
    "classes, linear": lambda: sample(11, (), "relu", outputs=5, gain=30, task="classification"),
    "huge features": lambda: sample(8, (30,), "silu", x_std=1e20),
}


@pytest.mark.parametrize("kind", FAITHFUL)
def test_a_faithful_export_passes(kind: str, tmp_path: Path) -> None:
    reference = FAITHFUL[kind]().export(tmp_path)
    verify_files(tmp_path, reference).require_agreement()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "random_model" in metafunc.fixturenames:
        count = metafunc.config.getoption("--random-models")
        metafunc.parametrize("random_model", range(count))


def test_a_faithful_export_of_a_random_model_passes(random_model: int, tmp_path: Path) -> None:
    """Nor does the self-check of the verifier alarm; trained and untrained, any task."""
    task: Task = "classification" if random_model % 4 > 1 else "regression"
    widest = 1024 if random_model % 3 == 0 else 200
    s = any_sample(100 + random_model, widest, task)
    if random_model % 2:
        s = trained(s)
    verify_staged(tmp_path, s.export(tmp_path), tmp_path).require_agreement()


# Wrong ones. The inputs are all positive, as real ones often are.


@pytest.fixture(scope="module")
def positive(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Reference]:
    folder = tmp_path_factory.mktemp("positive")
    return folder, positive_sample().export(folder)


def positive_sample() -> Sample:
    s = sample(0, (16, 16), "relu", x_mean=10)
    assert (s.x > 0).all()
    return s


def first(proto: onnx.ModelProto, operator: str, *, after: str = "input") -> None:
    """Puts an operator between the input and all that read it."""
    for node in proto.graph.node:
        node.input[:] = ["changed" if name == after else name for name in node.input]
    proto.graph.node.insert(0, onnx.helper.make_node(operator, [after], ["changed"]))


def magnitude_of_input(proto: onnx.ModelProto) -> None:
    first(proto, "Abs")


def negative_input_is_zero(proto: onnx.ModelProto) -> None:
    first(proto, "Relu")


def slightly_larger(proto: onnx.ModelProto) -> None:
    """All weights are right; the answers are not."""
    for node in proto.graph.node:
        node.output[:] = ["before" if name == "output" else name for name in node.output]
    factor = onnx.numpy_helper.from_array(np.array(1.0001, np.float32), "factor")
    proto.graph.node.append(onnx.helper.make_node("Constant", [], ["factor"], value=factor))
    proto.graph.node.append(onnx.helper.make_node("Mul", ["before", "factor"], ["output"]))


def second_output(proto: onnx.ModelProto) -> None:
    proto.graph.node.append(onnx.helper.make_node("Identity", ["output"], ["more"]))
    proto.graph.output.append(proto.graph.output[0])
    proto.graph.output[1].name = "more"


def batch_of_another_name(proto: onnx.ModelProto) -> None:
    for value in (proto.graph.input[0], proto.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_param = "s77"


def a_weight_too_many(proto: onnx.ModelProto) -> None:
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(3, np.float32), "more"))


def one_part_in_a_thousand(proto: onnx.ModelProto) -> None:
    weight = next(w for w in proto.graph.initializer if w.name == "network.2.weight")
    values = onnx.numpy_helper.to_array(weight).copy()
    values[3, 3] *= np.float32(1.001)
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))


@pytest.mark.parametrize(
    ("mutate", "reason"),
    [
        (magnitude_of_input, "scale -1: "),
        (negative_input_is_zero, "scale -1: "),
        (slightly_larger, "outside the bound"),
        (second_output, "the answer is a list"),
        (batch_of_another_name, "the signature is"),
        (a_weight_too_many, "holds more, which the trained model has not"),
        (one_part_in_a_thousand, "other values in 1 of 256 elements of network.2.weight"),
    ],
)
def test_a_wrong_onnx_file_is_refused_with_its_reason(
    mutate: Callable[[onnx.ModelProto], None],
    reason: str,
    positive: tuple[Path, Reference],
    tmp_path: Path,
) -> None:
    folder = shutil.copytree(positive[0], tmp_path / "wrong")
    proto = onnx.load(folder / "model.onnx")
    mutate(proto)
    (folder / "model.onnx").write_bytes(proto.SerializeToString())
    faults = verify_files(folder, positive[1]).faults
    assert any(reason in fault for fault in faults), faults
    assert all(fault.startswith("model.onnx") for fault in faults)


class Wrong(nn.Module):
    """A model with the right weights under their right names, and one thing wrong."""

    def __init__(self, model: MLP, forward: Callable[[MLP, torch.Tensor], Any]) -> None:
        super().__init__()
        self.input, self.network, self.output = model.input, model.network, model.output
        self.wrong = forward

    def forward(self, x: torch.Tensor) -> Any:
        return self.wrong(self, x)  # type: ignore[arg-type]


def other_activation(m: MLP, x: torch.Tensor) -> torch.Tensor:
    h = m.input(x)
    for module in m.network:
        h = nn.functional.leaky_relu(h) if isinstance(module, nn.ReLU) else module(h)
    answer: torch.Tensor = m.output(h)
    return answer


@pytest.mark.parametrize(
    "forward",
    [
        other_activation,
        lambda m, x: m.output(m.network(m.input(x.flip(1)))),
        lambda m, x: m.output(m.network(x)),
        lambda m, x: m.network(m.input(x)),
        lambda m, x: m.output(m.network(m.input(x.abs()))),
        lambda m, x: m.output(m.network(m.input(x.clamp(-1e3, 1e3)))),
        lambda m, x: m.output(m.network(m.input(x.half().float()))),
        lambda m, x: m.output(m.network(m.input(x))).sum(1),
        lambda m, x: m.output(m.network(m.input(x)))[:2],
        lambda m, x: m.output(m.network(m.input(torch.where(x > 1e4, torch.nan, x)))),
        lambda m, x: (m.output(m.network(m.input(x))),),
    ],
    ids=[
        "activation",
        "columns",
        "not standardised",
        "not unstandardised",
        "magnitude",
        "clamped",
        "float16",
        "squeezed",
        "two rows",
        "NaN on outliers",
        "a tuple",
    ],
)
def test_a_wrong_torchscript_file_with_the_right_weights_is_refused(
    forward: Callable[[MLP, torch.Tensor], Any], positive: tuple[Path, Reference], tmp_path: Path
) -> None:
    folder = shutil.copytree(positive[0], tmp_path / "wrong")
    wrong = Wrong(positive_sample().model, forward)
    write_torchscript(trace(wrong, torch.zeros(2, 10)), folder / "model.torchscript.pt")
    faults = verify_files(folder, positive[1]).faults
    assert faults
    assert all(fault.startswith("model.torchscript.pt in torch.jit") for fault in faults)


def test_an_approximate_gelu_in_a_deep_model_is_refused(tmp_path: Path) -> None:
    """Three layers are enough for the bound to let it pass: only the RMS error shows it."""
    reference = sample(0, (100,) * 3, "gelu", gain=2).export(tmp_path)
    proto = onnx.load(tmp_path / "model.onnx")
    for node in proto.graph.node:
        if node.op_type == "Gelu":
            del node.attribute[:]
            node.attribute.append(onnx.helper.make_attribute("approximate", "tanh"))
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    faults = verify_files(tmp_path, reference).faults
    assert faults
    assert not any("bound" in fault for fault in faults)
