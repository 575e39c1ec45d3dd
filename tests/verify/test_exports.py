"""Real exports: faithful ones of many shapes pass, and wrong ones that are hard to see do not."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

from job.config import Task
from job.export import write_torchscript
from job.model import MLP
from job.torchscript import trace
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


@pytest.mark.parametrize("operator", ["Abs", "Relu"])
def test_what_only_negative_inputs_show_is_refused(
    operator: str, positive: tuple[Path, Reference], tmp_path: Path
) -> None:
    folder = shutil.copytree(positive[0], tmp_path / "wrong")
    proto = onnx.load(folder / "model.onnx")
    for node in proto.graph.node:
        node.input[:] = ["changed" if name == "input" else name for name in node.input]
    proto.graph.node.insert(0, onnx.helper.make_node(operator, ["input"], ["changed"]))
    (folder / "model.onnx").write_bytes(proto.SerializeToString())
    faults = verify_files(folder, positive[1]).faults
    assert any("scale -1: " in fault for fault in faults), faults
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
        lambda m, x: m.network(m.input(x)),
        lambda m, x: m.output(m.network(m.input(x))) + 0.01,
        lambda m, x: m.output(m.network(m.input(x.abs()))),
        lambda m, x: m.output(m.network(m.input(x.clamp(-1e3, 1e3)))),
        lambda m, x: m.output(m.network(m.input(x.half().float()))),
        lambda m, x: m.output(m.network(m.input(x))).sum(1),
        lambda m, x: m.output(m.network(m.input(torch.where(x > 1e4, torch.nan, x)))),
        lambda m, x: (m.output(m.network(m.input(x))),),
    ],
    ids=[
        "activation",
        "not unstandardised",
        "moved",
        "magnitude",
        "clamped",
        "float16",
        "squeezed",
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
