"""Runs every model file of a folder over the battery and judges it: the heart of the job."""

import hashlib
import importlib.util
import io
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from job.durable import write_npy
from job.errors import ExportMismatch, ReadWriteError
from job.verify.compare import Comparison, compare
from job.verify.diagnose import Diagnosis, diagnose
from job.verify.engines import Engine, engines, onnx_signature
from job.verify.judgement import Judgement, score
from job.verify.reference import Reference
from job.verify.weights import disagreements, weights_of

MODEL_FILES = ("model.onnx", "model.torchscript.pt", "model.pt2", "model.safetensors")
ALWAYS = ("model.onnx", "model.torchscript.pt")
GOLDENS = tuple(
    name for n in ("input", "output") for name in (f"golden/{n}.npy", f"test_data_set_0/{n}_0.pb")
)
FAILING_INPUT = "failing_input.npy"


@dataclass(frozen=True)
class Verification:
    """Every comparison, and what could not be compared here."""

    comparisons: list[Comparison]
    skipped: list[str]
    sha256: Mapping[str, str]  # of the very bytes that were verified
    self_check: Sequence[Judgement] = ()  # what the verifier made of wrong exports of this model
    diagnosis: Diagnosis | None = None

    @property
    def faults(self) -> list[str]:
        """One line a failed comparison; fails closed where too little was compared."""
        found = [
            f"{c.artifact} in {c.engine}, {c.case}: {c.fault}"
            for c in self.comparisons
            if not c.passed
        ]
        ran = [c for c in self.comparisons if c.rows]
        idle = {(c.artifact, c.engine) for c in ran}
        idle -= {(c.artifact, c.engine) for c in ran if c.compared}
        found += [f"{a} in {e}: nothing was compared" for a, e in sorted(idle)]
        models = {c.artifact for c in ran} & set(MODEL_FILES)
        for artifact in ALWAYS:
            skipped = any(line.startswith(f"{artifact} in ") for line in self.skipped)
            if not skipped and artifact not in models:
                found.append(f"{artifact}: was not run")
        if not models:
            found.append("no model file was run")
        found += [
            f"the verifier failed its self-check: {j}" for j in self.self_check if not j.right
        ]
        return found

    @property
    def mutants(self) -> tuple[int, int]:
        """How many of the wrong exports of the self-check were rejected, and how many there were;
        those that change nothing in this model are not counted."""
        n = score(self.self_check)[1]
        return n["rejected"], n["rejected"] + n["survived"] + n["misjudged"]

    def require_agreement(self) -> None:
        """Before publishing everything must have been seen: what is skipped is not verified.

        Raises:
            ExportMismatch: a comparison failed, or something could not be compared.
        """
        faults = [*self.faults, *self.skipped]
        if faults:
            more = f", and {len(faults) - 1} more" if len(faults) > 1 else ""
            raise ExportMismatch(
                f"the files do not agree with the trained model: {faults[0]}{more}"
            )

    @property
    def headroom(self) -> float:
        """1 - the largest share of its error bound that any answer used."""
        return 1 - max((c.bound_used for c in self.comparisons), default=1.0)

    def explained(self, folder: Path, reference: Reference) -> "Verification":
        """The same with a diagnosis, if an answer of a file in `folder` is wrong."""
        return replace(self, diagnosis=diagnose(folder, reference, self.comparisons))

    def as_json(self) -> dict[str, Any]:
        """What verification.json holds."""
        return {
            "passed": not self.faults,
            "headroom": self.headroom,
            "faults": self.faults,
            "skipped": self.skipped,
            "self_check": {
                "score": score(self.self_check)[0],
                "mutants": [asdict(j) for j in self.self_check],
            },
            "diagnosis": self.diagnosis and self.diagnosis.as_json(),
            "comparisons": [c.as_json() for c in self.comparisons],
        }

    def write(self, folder: Path) -> None:
        """verification.json, and beside it the failing input if there is one, (N, F) as .npy."""
        text = json.dumps(self.as_json(), indent=1, allow_nan=False)
        (folder / "verification.json").write_text(text + "\n")
        if self.diagnosis:
            write_npy(folder / FAILING_INPUT, self.diagnosis.input)


def verify_files(folder: Path, reference: Reference) -> Verification:
    """Holds the model files in `folder` against `reference`; each is read once, from disk.

    Raises:
        ReadWriteError: there is no temporary folder, so that it would be this machine that fails.
    """
    _require_temporary_folder()
    present = [name for name in (*MODEL_FILES, *GOLDENS) if (folder / name).is_file()]
    files = {name: (folder / name).read_bytes() for name in present}
    runnable, skipped = engines(files)
    comparisons = list(_goldens(files, reference, skipped))
    if any(engine.artifact == "model.onnx" for engine in runnable):
        comparisons.append(_signature(files["model.onnx"], reference))
    for artifact in (name for name in MODEL_FILES if name in files):
        comparison = _weights(artifact, files[artifact], reference)
        if comparison is None:
            skipped.append(f"{artifact}: its weights, as the library that reads it is missing")
        else:
            comparisons.append(comparison)
    comparisons += _answers(files, runnable, reference)
    if not _subnormals_survive():
        skipped.append("subnormal numbers: this process reads or writes them as zeros")
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    return Verification(comparisons, skipped, digests)


def _require_temporary_folder() -> None:
    """torch unpacks into one; without, a faithful file would seem to be a wrong one."""
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        raise ReadWriteError(
            "there is no writable temporary folder; set TMPDIR, or add --tmpfs /tmp to docker run"
        ) from None


def _subnormals_survive() -> bool:
    """A library may have told this thread's processor to flush them, and then nothing sees them."""
    tiny = np.full(1, 2.0**-140, np.float32)
    return bool((tiny * np.float32(2)).view(np.uint32)[0])


def _goldens(
    files: Mapping[str, bytes], reference: Reference, skipped: list[str]
) -> Iterator[Comparison]:
    """The golden answers are the oracle's, and both layouts hold the same numbers."""
    golden = reference.golden_output
    case, expected = reference.expected[0]
    yield compare(case.name, "trained model", case, golden, expected)
    for name, values in (("input", reference.golden_input), ("output", golden)):
        yield _same(files, f"golden/{name}.npy", "numpy", _read_npy, values)
        if importlib.util.find_spec("onnx") is None:
            skipped.append(f"test_data_set_0/{name}_0.pb: onnx is not installed")
        else:
            yield _same(files, f"test_data_set_0/{name}_0.pb", "onnx", _read_pb, values)


def _read_npy(content: bytes) -> Any:
    return np.load(io.BytesIO(content), allow_pickle=False)


def _read_pb(content: bytes) -> Any:
    import onnx

    return onnx.numpy_helper.to_array(onnx.load_tensor_from_string(content))


def _same(
    files: Mapping[str, bytes],
    name: str,
    engine: str,
    read: Callable[[bytes], Any],
    wanted: NDArray[Any],
) -> Comparison:
    """Does the file `name` hold the numbers `wanted`, bit for bit?"""
    faults = {}
    try:
        found = read(files[name])
        same = found.dtype == wanted.dtype and found.shape == wanted.shape
        if not (same and found.tobytes() == wanted.tobytes()):
            faults["goldens"] = "differs"
    except Exception as error:  # noqa: BLE001  whatever it is, the file does not agree
        reason = _first_line(error) if name in files else "it is missing"
        faults["goldens"] = f"cannot be read: {reason}"
    return Comparison(name, engine, "same numbers", 0, compared=wanted.size, faults=faults)


def _signature(content: bytes, reference: Reference) -> Comparison:
    """Names, types and shapes of the ONNX file, with the batch axis free."""
    features, outputs = reference.golden_input.shape[1], reference.golden_output.shape[1]
    wanted = (
        [("input", "tensor(float)", ["batch", features])],
        [("output", "tensor(float)", ["batch", outputs])],
    )
    faults = {}
    try:
        got = onnx_signature(content)
        if got != wanted:
            faults["signature"] = f"the signature is {got}, not {wanted}"
    except Exception as error:  # noqa: BLE001  whatever it is, the file does not agree
        faults["runs"] = f"cannot be loaded: {_first_line(error)}"
    return Comparison("model.onnx", "onnxruntime", "signature", 0, faults=faults)


def _weights(artifact: str, content: bytes, reference: Reference) -> Comparison | None:
    try:
        found = weights_of(artifact, content)
        if found is None:
            return None
        reasons = list(disagreements(artifact, found, reference.weights))
    except Exception as error:  # noqa: BLE001  whatever it is, the file does not agree
        reasons = [f"its weights cannot be read: {_first_line(error)}"]
    count = sum(weight.size for weight in reference.weights.values())
    faults = {"weights": "; ".join(reasons[:3])} if reasons else {}
    return Comparison(artifact, "weights", "bit for bit", 0, compared=count, faults=faults)


def _answers(
    files: Mapping[str, bytes], runnable: list[Engine], reference: Reference
) -> Iterator[Comparison]:
    """Every engine, and the trained model itself, on every case of the battery."""
    battery = reference.expected[1:]
    if reference.answers:
        for (case, expected), answer in zip(battery, reference.answers, strict=True):
            yield compare("trained model", "torch", case, answer, expected)
    for engine in runnable:
        try:
            run = engine.load(files[engine.artifact])
        except Exception as error:  # noqa: BLE001  whatever it is, the file does not agree
            faults = {"runs": f"cannot be loaded: {_first_line(error)}"}
            yield Comparison(engine.artifact, engine.name, "load", 0, faults=faults)
            continue
        for case, expected in battery:
            try:
                got = run(case.x.copy())
            except Exception as error:  # noqa: BLE001  whatever it is, the file does not agree
                faults = {"runs": f"cannot be run: {_first_line(error)}"}
                rows = len(case.x)
                yield Comparison(engine.artifact, engine.name, case.name, rows, faults=faults)
            else:
                yield compare(
                    engine.artifact, engine.name, case, got, expected, reference.torch_error
                )


def _first_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:300]
