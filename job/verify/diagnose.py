"""Where a wrong file and the trained model part: the smallest failing input, the first layer.

Shapes: N rows, F features, O outputs, H values of a layer.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from job import torchscript
from job.verify.battery import Case
from job.verify.compare import NOISE_LIMIT, TORCH_LIMIT, Comparison, compare
from job.verify.engines import Run, engines, load_program, onnx_session
from job.verify.oracle import Answer, Stage
from job.verify.reference import Reference

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Diagnosis:
    """The first wrong answer of a verification, on as few rows as still show it."""

    artifact: str
    engine: str
    case: str
    rows: Sequence[int]  # of the case's input
    reason: str
    # RMS error in units of rounding by chance, stage by stage, of the file's tensor nearest to it;
    # None where no tensor has its shape, or NaN and infinity where they should be. Empty if the
    # file's inside cannot be seen.
    layers: Mapping[str, float | None]
    first_layer: str | None  # the first stage that no tensor of the file agrees with
    input: Float32  # (N, F)

    def __str__(self) -> str:
        rows = ", ".join(map(str, self.rows[:8])) + (", ..." if len(self.rows) > 8 else "")
        few = f"row {rows}" if len(self.rows) == 1 else f"{len(self.rows)} rows ({rows})"
        where = f" It parts from the model at {self.first_layer}." if self.first_layer else ""
        return (
            f"The smallest failing input is {few} of {self.case}, for {self.artifact} in "
            f"{self.engine}: {self.reason}.{where}"
        )

    def as_json(self) -> dict[str, Any]:
        """All but the input, which is a file of its own."""
        return {k: v for k, v in vars(self).items() if k != "input"} | {"sentence": str(self)}


def diagnose(
    folder: Path, reference: Reference, comparisons: Sequence[Comparison]
) -> Diagnosis | None:
    """What can be said of the first wrong answer; None if no answer is wrong (a weight may be)."""
    cases = {case.name: (case, expected) for case, expected in reference.expected}
    for wrong in comparisons:
        if not wrong.passed and wrong.rows and wrong.case in cases:
            return _diagnosis(folder, reference, wrong, *cases[wrong.case])
    return None


def _diagnosis(
    folder: Path, reference: Reference, wrong: Comparison, case: Case, expected: Answer
) -> Diagnosis:
    content = (folder / wrong.artifact).read_bytes() if (folder / wrong.artifact).is_file() else b""
    here, _ = engines({wrong.artifact: content} if content else {})
    run = next((e.load(content) for e in here if e.name == wrong.engine), None)
    rows: Sequence[int] = range(wrong.rows)
    reason = str(wrong.fault)
    layers: dict[str, float | None] = {}
    if run is not None:
        for some in _fewer_rows(wrong):
            fault = _fault(run, reference, case, expected, some)
            if fault is not None:
                rows, reason = some, fault
                break
        limit = TORCH_LIMIT * reference.torch_error if case.complete else NOISE_LIMIT
        layers = _layers(wrong.artifact, content, reference, case.x[list(rows)])
    parts = (name for name, error in layers.items() if error is None or not error <= limit)
    return Diagnosis(
        wrong.artifact,
        wrong.engine,
        wrong.case,
        list(rows),
        reason,
        layers,
        next(parts, None),
        case.x[list(rows)],
    )


def _fewer_rows(wrong: Comparison) -> Iterator[Sequence[int]]:
    """Each row alone, the worst one first; then the first 2, 4, 8, ... together; then all."""
    worst = [] if wrong.worst_row is None else [wrong.worst_row]
    for row in [*worst, *range(min(wrong.rows, 64))]:
        yield [row]
    size = 2
    while size < wrong.rows:
        yield range(size)
        size *= 2
    yield range(wrong.rows)


def _fault(
    run: Run, reference: Reference, case: Case, expected: Answer, rows: Sequence[int]
) -> str | None:
    some = Case(case.name, case.x[list(rows)], case.complete)
    try:
        got = run(some.x.copy())
    except Exception as error:  # noqa: BLE001  whatever it is, the file does not agree
        return f"cannot be run: {error}"[:300]
    answer = expected.of_rows(np.array(rows, np.intp))
    return compare("", "", some, got, answer, reference.torch_error).fault


def _layers(
    artifact: str, content: bytes, reference: Reference, x: Float32
) -> dict[str, float | None]:
    """The error of each stage, or nothing if the file's inside cannot be seen."""
    inside = {
        "model.onnx": _onnx_tensors,
        "model.torchscript.pt": _torchscript_tensors,
        "model.pt2": _program_tensors,
    }[artifact]
    try:
        tensors = inside(content, x)
    except Exception:  # noqa: BLE001  wrong already: it need not run, nor must onnx be installed
        return {}
    *stages, output = reference.oracle().stages(x)
    found = {stage.name: _nearest(stage, tensors) for stage in stages}
    return found | {output.name: _nearest(output, tensors[:1])}


def _nearest(stage: Stage, tensors: Sequence[Float32]) -> float | None:
    errors = [_error(stage, t) for t in tensors if t.shape == stage.value.shape]
    return min((error for error in errors if error is not None), default=None)


def _error(stage: Stage, tensor: Float32) -> float | None:
    """RMS error in units of the noise; none where NaN or infinity stands in another place."""
    finite = np.isfinite(stage.value)
    same = (np.isnan(stage.value) & np.isnan(tensor)) | (stage.value == tensor)
    if not (np.isfinite(tensor[finite]).all() and same[~finite].all()):
        return None
    errors = (tensor.astype(np.float64) - stage.value)[finite] / stage.noise[finite]
    return float(np.sqrt(np.mean(np.square(errors)))) if errors.size else 0.0


def _onnx_tensors(content: bytes, x: Float32) -> list[Float32]:
    """The answer, and then all that goes into it, not optimised."""
    import onnx

    model = onnx.load_model_from_string(content)
    used = {value.name for value in model.graph.output}
    for node in reversed(model.graph.node):
        if used & set(node.output):
            used |= set(node.input)
    computed = [name for node in model.graph.node for name in node.output if name in used]
    outputs = [value.name for value in model.graph.output]
    names = [name for name in computed if name not in outputs]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    found = onnx_session(model.SerializeToString(), optimise=False).run(None, {"input": x})
    return [tensor for tensor in found if tensor.dtype == np.float32]


def _torchscript_tensors(content: bytes, x: Float32) -> list[Float32]:
    """The same of the module's code, with all that it calls written out."""
    import torch

    with torchscript.asked_for():
        graph = torch.jit.freeze(torchscript.load(content).eval()).graph.copy()
    for node in list(graph.nodes()):
        for value in node.outputs():
            if value.type().kind() == "TensorType" and node.kind() != "prim::Constant":
                graph.registerOutput(value)
    graph.eraseInput(0)  # the module itself, whose weights are constants now
    graph.makeMultiOutputIntoTuple()
    with torch.no_grad():
        found = torch._C._create_function_from_graph("forward", graph)(torch.from_numpy(x))
    return [tensor.numpy() for tensor in found if tensor.dtype == torch.float32]


def _program_tensors(content: bytes, x: Float32) -> list[Float32]:
    """The same of a torch.export program."""
    import torch

    found: list[Any] = []

    class Watched(torch.fx.Interpreter):
        def run_node(self, node: torch.fx.Node) -> Any:
            found.append(super().run_node(node))
            return found[-1]

    with torch.no_grad():
        module = load_program(content).module()
        answer = Watched(module).run(torch.from_numpy(x))
    tensors = (value for value in [answer, *found] if isinstance(value, torch.Tensor))
    return [tensor.detach().numpy() for tensor in tensors if tensor.dtype == torch.float32]
