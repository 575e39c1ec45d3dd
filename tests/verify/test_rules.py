"""Every rule of the verifier is needed: for each there is a fault that no other rule sees."""

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from job.verify import Reference, Verification, verify_files
from job.verify.compare import NOISE_LIMIT
from job.verify.mutants import mutants
from tests.conftest import ROOT

from .models import Sample, sample

NARROW = "MLP 10-16-1, relu"
WIDE = "MLP 10-1024-1024-1, silu"
CLASSES = "MLP 10-64-64-3, gelu, classes"
NAN = "MLP 10-16-1 with a bias of NaN"

# A row that only the largest batch has.
FAR_ROW = 8000


def narrow() -> Sample:
    return sample(0, (16,), "relu", x_mean=3, y_mean=2, y_std=5)


def classes() -> Sample:
    """Row FAR_ROW of the largest batch is one whose two likeliest classes are nearly alike."""
    s = sample(6, (64, 64), "gelu", outputs=3, gain=2, task="classification")
    x, oracle, at = s.x.copy(), s.oracle(), FAR_ROW % len(s.x)
    likeliest = s.answer(x).argmax(axis=1)
    low, high = (x[np.flatnonzero(likeliest == k)[0]].astype(np.float64) for k in likeliest[[0, 1]])
    for _ in range(200):
        x[at] = middle = (low + high) / 2
        value, noise = (v[0] for v in (oracle(x[at : at + 1]).value, oracle(x[at : at + 1]).noise))
        first, second = np.argsort(value)[::-1][:2]
        margin = (value[first] - value[second]) / np.hypot(noise[first], noise[second])
        if 1.1 * NOISE_LIMIT < margin < 2 * NOISE_LIMIT:
            break
        if margin > NOISE_LIMIT:
            low, high = (middle, high) if first == likeliest[0] else (low, middle)
        else:
            high = middle + 40 * (high - middle)
    return replace(s, x=x)


def of_nan() -> Sample:
    s = narrow()
    with torch.no_grad():
        s.model.state_dict()["network.2.bias"].fill_(torch.nan)
    return s


MODELS: dict[str, Callable[[], Sample]] = {
    NARROW: narrow,
    WIDE: lambda: sample(3, (1024, 1024), "silu"),
    CLASSES: classes,
    NAN: of_nan,
}


# Faults: each breaks a faithful folder, and may say what else it is to be held against.
Break = Callable[[Path, Reference], Reference | None]


def program(text: str, **values: Any) -> Break:
    """model.onnx puts out what `text` makes of its answers x; `values` are arrays by name."""

    def change(folder: Path, reference: Reference) -> None:
        proto = onnx.load(folder / "model.onnx")
        for node in proto.graph.node:
            node.output[:] = ["x" if name == "output" else name for name in node.output]
        for name, value in values.items():
            made = value(reference) if callable(value) else np.array(value)
            tensor = onnx.numpy_helper.from_array(made, name)
            proto.graph.node.append(onnx.helper.make_node("Constant", [], [name], value=tensor))
        parsed = onnx.parser.parse_graph(f"p (float x) => (float output) {{ {text} }}")
        proto.graph.node.extend(parsed.node)
        (folder / "model.onnx").write_bytes(proto.SerializeToString())

    return change


def mutant(name: str) -> Break:
    def change(folder: Path, reference: Reference) -> None:
        files = {"model.onnx": (folder / "model.onnx").read_bytes()}
        made = next(m for m in mutants(files, reference) if m.name == name)
        (folder / "model.onnx").write_bytes(made.content)

    return change


def golden_of_another_run(folder: Path, reference: Reference) -> None:
    np.save(folder / "golden" / "output.npy", np.nextafter(reference.golden_output, np.float32(9)))


def no_torchscript(folder: Path, reference: Reference) -> None:
    (folder / "model.torchscript.pt").unlink()


def trained_less_precisely(folder: Path, reference: Reference) -> Reference:
    """As a GPU may that rounds the factors of matrix products: the model itself answers so."""
    exact = reference.expected[0][1]
    signs = np.random.default_rng(0).choice([-1, 1], exact.value.shape)
    answers = (exact.value + 1.5 * NOISE_LIMIT * signs * exact.noise).astype(np.float32)
    np.save(folder / "golden" / "output.npy", answers)
    tensor = onnx.numpy_helper.from_array(answers, "output")
    onnx.save_tensor(tensor, folder / "test_data_set_0" / "output_0.pb")
    return replace(reference, golden_output=answers)


def nothing(folder: Path, reference: Reference) -> None:
    pass


IN_FAR_ROW = (
    "a = Shape <start = 0, end = 1> (x)  b = Squeeze(a)  c = Range(zero, b, one)  "
    "d = Equal(c, row)  e = Unsqueeze(d, one_axis)  f = {other}  output = Where(e, f, x)"
)
FAR = {"zero": 0, "one": 1, "row": FAR_ROW, "one_axis": [1]}

# Rule -> the fault that it alone sees: in words, the model, how it is made.
FAULTS: dict[str, tuple[str, str, Break]] = {
    "goldens": (
        "golden/output.npy is one rounding off",
        NARROW,
        golden_of_another_run,
    ),
    "signature": (
        "the batch axis has another name",
        NARROW,
        mutant("batch axis of another name"),
    ),
    "weights": ("the last bit of one weight", NARROW, mutant("the last bit of one weight")),
    "runs": (
        "only even batches can be run",
        NARROW,
        program("a = Reshape(x, pairs)  output = Reshape(a, rows)", pairs=[2, -1], rows=[-1, 1]),
    ),
    "structure": (
        "the last row is missing",
        NARROW,
        program("output = Slice(x, first, last, rows)", first=[0], last=[-1], rows=[0]),
    ),
    "finite": ("0 for NaN", NARROW, mutant("a number for NaN")),
    "bound": (
        f"one row of {FAR_ROW:,} is off by twice its bound",
        NARROW,
        program(
            IN_FAR_ROW.format(other="Add(x, step)"),
            step=lambda r: (2 * r.expected[0][1].bound[[FAR_ROW % len(r.golden_input)]]).astype(
                np.float32
            ),
            **FAR,
        ),
    ),
    "noise": (
        "the trained model itself answers with TF32's precision",
        WIDE,
        trained_less_precisely,
    ),
    "torch": ("all answers larger by 1e-4", WIDE, mutant("answers larger by 1e-4")),
    "decisions": (
        f"one row of {FAR_ROW:,}: its two likeliest classes, nearly alike, exchanged",
        CLASSES,
        program(
            IN_FAR_ROW.format(other="Gather <axis = 1> (x, order)"),
            order=lambda r: _exchanged(r),
            **FAR,
        ),
    ),
    "ordinary": ("a model that answers NaN, faithfully exported", NAN, nothing),
    "ran": ("model.torchscript.pt is missing", NARROW, no_torchscript),
}


def _exchanged(reference: Reference) -> Any:
    value = reference.expected[0][1].value[FAR_ROW % len(reference.golden_input)]
    second, first = np.argsort(value)[-2:]
    order = np.arange(len(value))
    order[[first, second]] = second, first
    return order


def broken_rules(found: Verification) -> set[str]:
    rules = {rule for c in found.comparisons for rule in c.faults}
    return rules | {"ran" for fault in found.faults if fault.endswith("was not run")}


@pytest.fixture(scope="module")
def faithful(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Reference]]:
    made: dict[str, tuple[Path, Reference]] = {}

    def of(model: str) -> tuple[Path, Reference]:
        if model not in made:
            folder = tmp_path_factory.mktemp("faithful")
            reference = MODELS[model]().export(folder)
            batches = [1, 2, 7, 64, *([8192] if model != WIDE else [])]  # FAR_ROW is not WIDE's
            made[model] = folder, replace(reference, batches=batches, answers=())
        return made[model]

    return of


@pytest.mark.parametrize("rule", FAULTS)
def test_a_fault_that_only_this_rule_sees(
    rule: str, faithful: Callable[[str], tuple[Path, Reference]], tmp_path: Path
) -> None:
    _, model, change = FAULTS[rule]
    source, reference = faithful(model)
    folder = shutil.copytree(source, tmp_path / "broken")
    found = verify_files(folder, change(folder, reference) or reference)
    assert broken_rules(found) == {rule}, found.faults
    assert found.faults


@pytest.mark.parametrize("model", [NARROW, WIDE, CLASSES])
def test_unbroken_they_break_no_rule(
    model: str, faithful: Callable[[str], tuple[Path, Reference]]
) -> None:
    assert verify_files(*faithful(model)).faults == []


def test_a_process_that_flushes_subnormals_says_so(
    faithful: Callable[[str], tuple[Path, Reference]],
) -> None:
    torch.set_flush_denormal(True)
    try:
        found = verify_files(*faithful(NARROW))
    finally:
        torch.set_flush_denormal(False)
    assert found.skipped == ["subnormal numbers: this process reads or writes them as zeros"]


def test_the_table_in_the_docs_is_this_one() -> None:
    rows = [f"| `{rule}` | {words} | {model} |" for rule, (words, model, _) in FAULTS.items()]
    text = (ROOT / "docs" / "verification.md").read_text()
    table = re.search(r"\| rule \| fault .*\n\|.*\n((?:\|.*\n)+)", text)
    assert table is not None
    assert table[1].splitlines() == rows
