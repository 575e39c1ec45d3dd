"""The verifier is verified on this very model: wrong exports of it must be refused.

Each lies in a folder like the published one, with hashes made to fit, so that numbers and structure
do the work; `judge_published` judges it, as it judges any folder. `self_check` is the short form,
for a folder that is about to be published.
"""

import importlib.util
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from job.errors import DataError, MissingInputError
from job.manifest import file_entries, read_manifest, write_manifest
from job.verify.compare import NOISE_LIMIT, TORCH_LIMIT, Comparison
from job.verify.engines import Run, engines
from job.verify.files import ALWAYS, GOLDENS, MODEL_FILES, verify_files
from job.verify.judgement import Judgement, Verdict
from job.verify.oracle import Answer
from job.verify.published import judge_published, reference_of
from job.verify.reference import Reference
from job.verify.weights import read_safetensors

if TYPE_CHECKING:
    from job.verify.mutants import Mutant

# How far beyond a limit one set of rows may be while another is within.
NEAR = 4.0
# The largest batch of the short form.
SHORT = 257

# Rows (N, F), and how many times the noise the verifier lets their errors be.
Rows = tuple[NDArray[np.float32], float]


def self_test(folder: Path) -> Iterator[Judgement]:
    """Judges every mutant of a published folder, which itself is only read.

    Raises:
        MissingInputError: onnx or onnxruntime, which make and run wrong models, is missing.
    """
    for library in ("onnx", "onnxruntime"):
        if importlib.util.find_spec(library) is None:
            raise MissingInputError(f"the self-test makes wrong models: install {library}")
    from job.verify.mutants import mutants

    folder = folder.resolve()
    manifest = read_manifest(folder)
    reference = reference_of(folder, manifest)
    names = [name for name in (*MODEL_FILES, *GOLDENS) if name in manifest["files"]]
    files = {name: (folder / name).read_bytes() for name in names}
    rows = list(_other_rows(reference, NOISE_LIMIT))
    for mutant in mutants(files, reference):
        with tempfile.TemporaryDirectory() as scratch:
            _place(mutant, folder, manifest, Path(scratch))
            faults, rules = _seen(Path(scratch))
            yield _judged(mutant, files[mutant.artifact], reference, rows, faults, rules)


def self_check(folder: Path, reference: Reference, work: Path) -> Iterator[Judgement]:
    """The most telling mutants of model.onnx alone, judged by the very reference of a run.

    Meant for the process that has just verified `folder`, which need not be published yet and is
    only read. Each mutant in its turn lies in the folder `work`. Needs onnx.
    """
    from job.verify.mutants import ONNX, TELLING, mutants

    # Two dozen models need not run the training batch.
    batches = [n for n in reference.batches if n <= SHORT] or [min(reference.batches)]
    reference = replace(reference, batches=batches, answers=())
    # A number that is wrong beyond ordinary rows alone may be one that this model hides: no fault
    # of the verifier. `self_test` tells of it.
    rows = list(_other_rows(reference, np.inf))
    original = (folder / ONNX).read_bytes()
    with tempfile.TemporaryDirectory(dir=work) as scratch:
        for mutant in mutants({ONNX: original}, reference):
            if mutant.name in TELLING:
                (Path(scratch) / ONNX).write_bytes(mutant.content)
                verification = verify_files(Path(scratch), reference)
                # That the other files are not there is not this one's fault.
                faults = [fault for fault in verification.faults if fault.startswith(ONNX)]
                rules = _rules(c for c in verification.comparisons if c.artifact == ONNX)
                yield _judged(mutant, original, reference, rows, faults, rules)


def _place(mutant: "Mutant", folder: Path, manifest: dict[str, Any], scratch: Path) -> None:
    """A folder like the published one, in which one file and its hash are others.

    Only what makes a whole folder is there: other formats cost time and are as they were.
    """
    kept = {*ALWAYS, "model.safetensors", *GOLDENS, mutant.artifact}
    for name in kept & manifest["files"].keys():
        path = scratch / name
        path.parent.mkdir(exist_ok=True)
        if name == mutant.artifact:
            path.write_bytes(mutant.content)
        else:
            path.symlink_to(folder / name)
    write_manifest(scratch, manifest | {"files": file_entries(scratch)})


def _seen(folder: Path) -> tuple[list[str], list[str]]:
    """What `verify DIR` finds wrong, and the rules that were broken."""
    try:
        verification, _ = judge_published(folder)
    except DataError as error:
        return [str(error)], ["content"]
    return verification.faults, _rules(verification.comparisons)


def _judged(
    mutant: "Mutant",
    original: bytes,
    reference: Reference,
    rows: Sequence[Rows],
    faults: Sequence[str],
    rules: Sequence[str],
) -> Judgement:
    named = [fault for fault in faults if mutant.reason and re.search(mutant.reason, fault)]
    verdict: Verdict
    if not mutant.reason:
        verdict = "refused" if faults else "accepted"
    elif faults:
        verdict = "rejected" if named else "misjudged"
    else:
        verdict = _passed(mutant, original, reference, rows)
    reason = next(iter(named or faults), "")
    return Judgement(mutant.name, mutant.artifact, verdict, rules, reason)


def _rules(comparisons: Iterable[Comparison]) -> list[str]:
    return sorted({rule for c in comparisons for rule in c.faults})


def _passed(
    mutant: "Mutant", original: bytes, reference: Reference, rows: Sequence[Rows]
) -> Verdict:
    """Why a wrong one may have passed, seen in rows that are not the battery's.

    So what the battery cannot see is not excused by the battery, nor by the code that compares.
    """
    from job.verify.mutants import NUMBERS

    if mutant.content == original:
        return "equivalent"
    if NUMBERS not in mutant.reason:
        return "survived"
    oracle = reference.oracle()
    before, after = (_runs(mutant.artifact, c, reference) for c in (original, mutant.content))
    verdict: Verdict = "equivalent"
    for x, limit in rows:
        expected = oracle(x)
        for one, other in zip(before, after, strict=True):
            was, now = np.asarray(one(x)), np.asarray(other(x))
            if was.dtype == now.dtype and np.array_equal(was, now, equal_nan=True):
                continue
            # Other weights are wrong however close the answers.
            if mutant.reason != NUMBERS or not _drowned(was, now, expected, limit):
                return "survived"
            verdict = "drowned"
    return verdict


def _drowned(was: NDArray[Any], now: NDArray[Any], expected: Answer, limit: float) -> bool:
    """Is the difference of two answers (N, O) such as rounding may make: `limit` noises?

    Or not much more: what is as large as the limit in these rows may be below it in the battery's.
    """
    with np.errstate(invalid="ignore"):
        apart = np.abs(now.astype(np.float64) - was)
    same = (was == now) | (np.isnan(was) & np.isnan(now))
    apart = np.where(same, 0.0, apart)
    demanded = np.isfinite(expected.bound)
    if np.isinf(limit):
        return bool(np.isfinite(apart[demanded]).all())
    squares = np.square(apart[demanded] / (NEAR * limit * expected.noise[demanded]))
    return bool((apart <= NEAR * expected.bound)[demanded].all() and squares.mean() <= 1)


def _other_rows(reference: Reference, unusual: float) -> Iterator[Rows]:
    """Every batch of another magnitude, NaN and infinity in the last; `unusual` is the limit of
    those that are not such as the model was trained on."""
    draw = np.random.Generator(np.random.Philox(0))
    mean, std = reference.weights["input.mean"], reference.weights["input.std"]
    for rows, scale in ((1, 1), (400, 1), (33, 1e-4), (33, 30), (33, 1e9), (33, 1e25)):
        x = (draw.standard_normal((rows, len(mean))) * scale * std + mean).astype(np.float32)
        yield x, TORCH_LIMIT * reference.torch_error if scale == 1 else unusual
    some = draw.choice([0.5, np.nan, np.inf, -np.inf], (33, len(mean)), p=[0.7, 0.1, 0.1, 0.1])
    yield some.astype(np.float32), unusual


def _runs(artifact: str, content: bytes, reference: Reference) -> list[Run]:
    """What answers for a file: its engines, for weights alone the oracle."""
    if artifact == "model.safetensors":
        oracle = replace(reference, weights=read_safetensors(content)).oracle()
        return [lambda x: oracle(x).value]
    return [engine.load(content) for engine in engines({artifact: content})[0]]
