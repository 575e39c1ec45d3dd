"""How other verifiers judge the wrong exports that `verify --self-test` makes of a published model.

    python -m benchmarks.verifiers artifacts/latest

prints tables in Markdown. Every verifier is called as its own tool calls it, with its own default
tolerances and on the rows that it would use. An error of any kind counts as refused, so a file that
cannot be run counts for the verifier. What is not installed is left out, and said on stderr.
"""

import contextlib
import importlib.metadata
import io
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import onnx_ir
import onnxruntime
import torch
from onnx.backend.test.runner import Runner
from torch.onnx._internal.exporter import _core, _testing, _verification

from job.manifest import read_manifest
from job.verify.files import verify_files
from job.verify.mutants import ONNX, mutants
from job.verify.published import reference_of

PASSES, WARNS, REFUSES = "passes", "warns", "refuses"

# What the second table shows, worst first for whoever trusts the answers.
SHOWN = (
    "one weight not a number",
    "biases dropped",
    "one weight off by 1e-2",
    "answers as float16",
    "two rows for all",
    "large batches cut off",
    "neighbours mixed in",
    "batch axis fixed at 2",
    "NaN for outliers",
    "inputs clipped to those seen",
    "a number for NaN",
    "the last bit of one weight",
)


@dataclass(frozen=True)
class Trained:
    """The trained model as torch runs it, and what a verifier may want to know of its file."""

    folder: Path
    scratch: Path

    @cached_property
    def program(self) -> torch.export.ExportedProgram:
        return torch.export.load(self.folder / "model.pt2")

    @cached_property
    def reference(self) -> Any:
        return reference_of(self.folder, read_manifest(self.folder))

    @property
    def held_out(self) -> torch.Tensor:
        return torch.from_numpy(self.reference.golden_input.copy())

    @property
    def traced(self) -> torch.Tensor:
        """What a user would export with: two rows of data."""
        return self.held_out[:2]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            answer: torch.Tensor = self.program.module()(x)
        return answer


def answers(content: bytes, x: torch.Tensor) -> torch.Tensor:
    """An ONNX file's answers, whatever it calls its input and output."""
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return torch.from_numpy(found[0])


def as_program(content: bytes, trained: Trained) -> torch.onnx.ONNXProgram:
    model = onnx_ir.serde.deserialize_model(onnx.load_model_from_string(content))
    return torch.onnx.ONNXProgram(model, trained.program)


# The verifiers: content -> PASSES or WARNS; an exception is a refusal. ---------------------------


def torch_verify(content: bytes, trained: Trained) -> str:
    """torch.onnx.export(verify=True), its last steps: what it logs, since it refuses nothing.

    Its check and comparison are called; its two limits, 5e-3 and 1e-1, stand inside the export
    function and are said again here, as they are written there: NaN is not above them.
    """
    try:
        program = as_program(content, trained)
        _core.onnxscript_apis.check_model(program.model)  # type: ignore[attr-defined]
        found = _verification.verify_onnx_program(program, (trained.traced,))
    except Exception:  # noqa: BLE001  it takes all, logs them, and returns the program
        return WARNS
    noted = any(v.max_abs_diff >= 5e-3 or v.max_rel_diff >= 1e-1 for v in found)
    return WARNS if noted else PASSES


def assert_onnx_program(content: bytes, trained: Trained) -> str:
    _testing.assert_onnx_program(
        as_program(content, trained), args=(trained.traced,), strategy=None
    )
    return PASSES


def assert_close_traced(content: bytes, trained: Trained) -> str:
    torch.testing.assert_close(answers(content, trained.traced), trained(trained.traced))
    return PASSES


def assert_close_held_out(content: bytes, trained: Trained) -> str:
    torch.testing.assert_close(answers(content, trained.held_out), trained(trained.held_out))
    return PASSES


def assert_close_battery(content: bytes, trained: Trained) -> str:
    for case, _ in trained.reference.expected[1:]:
        x = torch.from_numpy(case.x.copy())
        torch.testing.assert_close(answers(content, x), trained(x), equal_nan=True)
    return PASSES


def optimum(content: bytes, trained: Trained) -> str:
    from optimum.exporters.onnx import OnnxConfig, validate_model_outputs
    from optimum.utils import DummyInputGenerator, NormalizedConfig
    from transformers import PretrainedConfig

    class Rows(DummyInputGenerator):  # type: ignore[misc]  # untyped
        SUPPORTED_INPUT_NAMES = ("input",)

        def __init__(self, task: str, normalized_config: Any, batch_size: int = 2, **_: Any):
            self.shape = [batch_size, trained.traced.shape[1]]

        def generate(self, input_name: str, *_: Any, **__: Any) -> Any:
            return self.random_float_tensor(self.shape)

    class Config(OnnxConfig):  # type: ignore[misc]  # untyped
        NORMALIZED_CONFIG_CLASS = NormalizedConfig
        DUMMY_INPUT_GENERATOR_CLASSES = (Rows,)
        inputs = {"input": {0: "batch"}}  # noqa: RUF012  as its own configurations are written
        outputs = {"output": {0: "batch"}}  # noqa: RUF012

    class Model(torch.nn.Module):
        config = PretrainedConfig()

        def forward(self, input: torch.Tensor) -> dict[str, torch.Tensor]:  # noqa: A002
            return {"output": trained(input)}

    path = trained.scratch / "optimum.onnx"
    path.write_bytes(content)
    config = Config(Model.config, task="feature-extraction")
    validate_model_outputs(config, Model(), path, ["output"], use_subprocess=False)
    return PASSES


def polygraphy(content: bytes, trained: Trained) -> str:
    from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
    from polygraphy.comparator import Comparator, DataLoader, RunResults
    from polygraphy.logger import G_LOGGER

    G_LOGGER.module_severity = G_LOGGER.CRITICAL
    loader = DataLoader()
    runs = Comparator.run([OnnxrtRunner(SessionFromOnnx(content))], data_loader=loader)
    wanted = RunResults()
    x = torch.from_numpy(loader[0]["input"])
    wanted.add([{"output": trained(x).numpy()}], runner_name="torch")
    wanted.extend(runs)
    assert Comparator.compare_accuracy(wanted)
    return PASSES


def onnx_checker(content: bytes, trained: Trained) -> str:
    onnx.checker.check_model(onnx.load_model_from_string(content), full_check=True)
    return PASSES


def onnx_model_test(content: bytes, trained: Trained) -> str:
    """What onnx does with a model and its test_data_set_0; the tolerances are its loader's."""
    data = trained.folder / "test_data_set_0"
    x, y = (
        onnx.numpy_helper.to_array(onnx.load_tensor(data / f"{name}_0.pb"))
        for name in ("input", "output")
    )
    found = answers(content, torch.from_numpy(x.copy()))
    Runner.assert_similar_outputs([y], [found.numpy()], rtol=1e-3, atol=1e-7)
    return PASSES


def verify(content: bytes, trained: Trained) -> str:
    return _verify(content, trained, ())


def verify_answers(content: bytes, trained: Trained) -> str:
    return _verify(content, trained, ("weights", "onnxruntime"))  # the latter: the signature


def _verify(content: bytes, trained: Trained, left_out: tuple[str, ...]) -> str:
    (trained.scratch / ONNX).write_bytes(content)
    comparisons = verify_files(trained.scratch, trained.reference).comparisons
    of_onnx = [c for c in comparisons if c.artifact == ONNX and c.engine not in left_out]
    assert all(c.passed for c in of_onnx)
    return PASSES


class Verifier(NamedTuple):
    name: str
    package: str
    rows: str  # that it runs
    judge: Callable[[bytes, Trained], str]


VERIFIERS = [
    Verifier("`torch.onnx.export(verify=True)`", "torch", "the traced 2", torch_verify),
    Verifier("`assert_onnx_program`", "torch", "the traced 2", assert_onnx_program),
    Verifier("`torch.testing.assert_close`", "torch", "the traced 2", assert_close_traced),
    Verifier("the same", "torch", "256 held out", assert_close_held_out),
    Verifier("the same, `equal_nan`", "torch", "this project's", assert_close_battery),
    Verifier("`validate_model_outputs`", "optimum-onnx", "2, random in [0, 1)", optimum),
    Verifier("`Comparator.compare_accuracy`", "polygraphy", "1, random in [0, 1)", polygraphy),
    Verifier("`checker.check_model`, full", "onnx", "none", onnx_checker),
    Verifier("model test", "onnx", "256 held out", onnx_model_test),
    Verifier("this project, answers alone", "", "its own", verify_answers),
    Verifier("this project", "", "its own", verify),
]


def verdict(verifier: Verifier, content: bytes, trained: Trained) -> str:
    try:
        torch.manual_seed(0)
        with quiet():
            return verifier.judge(content, trained)
    except Exception:  # noqa: BLE001  any error refuses the file
        return REFUSES


@contextlib.contextmanager
def quiet() -> Iterator[io.StringIO]:
    """What they print goes into a buffer, what they warn of nowhere."""
    said = io.StringIO()
    with (
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield said


# What is printed. --------------------------------------------------------------------------------


def installed() -> Iterator[Verifier]:
    for verifier in VERIFIERS:
        try:
            importlib.metadata.version(verifier.package or "torch")
        except importlib.metadata.PackageNotFoundError:
            print(
                f"{verifier.name}: left out, {verifier.package} is not installed", file=sys.stderr
            )
        else:
            yield verifier


def row(*cells: object) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def tables(trained: Trained) -> Iterator[str]:
    made = list(mutants({ONNX: (trained.folder / ONNX).read_bytes()}, trained.reference))
    right = [mutant for mutant in made if not mutant.reason]
    wrong = [mutant for mutant in made if mutant.reason]
    verifiers = list(installed())
    found = {
        (verifier, mutant.name): verdict(verifier, mutant.content, trained)
        for verifier in verifiers
        for mutant in made
    }
    yield f"{len(wrong)} wrong exports and {len(right)} faithful ones of one model.onnx:\n"
    yield row("", "verifier", "of", "rows", "refused", "warned of", "passed", "false alarms")
    yield row("---:", "---", "---", "---", *["---:"] * 4)
    for number, verifier in enumerate(verifiers, 1):
        counts = [
            sum(found[verifier, mutant.name] == what for mutant in wrong)
            for what in (REFUSES, WARNS, PASSES)
        ]
        refused = sum(found[verifier, mutant.name] != PASSES for mutant in right)
        package = verifier.package
        version = f"{package} {importlib.metadata.version(package)}" if package else ""
        alarms = f"{refused} of {len(right)}"
        yield row(number, verifier.name, version, verifier.rows, *counts, alarms)
    yield "\nSome of them, `x` refused, `w` warned of:\n"
    numbers = range(1, len(verifiers) + 1)
    yield row("wrong export", *numbers)
    yield row("---", *[":-:" for _ in numbers])
    mark = {REFUSES: "x", WARNS: "w", PASSES: ""}
    for name in SHOWN:
        yield row(name, *(mark[found[verifier, name]] for verifier in verifiers))


def wrong_translations(trained: Trained) -> Iterator[str]:
    """torch.onnx.export(verify=True) itself, told to translate one operator wrongly."""
    import onnxscript

    op = onnxscript.values.Opset("", 18)
    model = trained.program.module()
    wrong: dict[str, Callable[..., Any]] = {
        "left out": lambda x: op.Identity(x),
        "made NaN": lambda x: op.Sqrt(op.Sub(op.Mul(x, 0.0), 1.0)),
    }
    yield "\n`torch.onnx.export(verify=True)` as a whole, with relu wrongly translated:\n"
    for name, translation in wrong.items():
        with quiet() as said:
            program = torch.onnx.export(
                model,
                (trained.traced,),
                dynamo=True,
                verify=True,
                verbose=True,
                custom_translation_table={torch.ops.aten.relu.default: translation},
            )
        last = [line for line in said.getvalue().splitlines() if "accuracy" in line][-1]
        yield f"* relu {name}: it returned an {type(program).__name__} and said `{last}`"


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        onnxruntime.set_default_logger_severity(4)
        trained = Trained(Path(sys.argv[1]).resolve(), Path(scratch))
        for line in (*tables(trained), *wrong_translations(trained)):
            print(line)


if __name__ == "__main__":
    main()
