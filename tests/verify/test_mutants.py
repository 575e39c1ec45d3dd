"""The verifier is verified, and so is what verifies it: without a rule, it raises the alarm."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest
import torch

from job.manifest import file_entries, write_manifest
from job.verify import Comparison, Reference, files, mutants
from job.verify.battery import Case
from job.verify.judgement import Judgement, score
from job.verify.mutants import NUMBERS, ONNX, Mutant
from job.verify.selftest import self_check, self_test
from tests.conftest import ROOT, Job

from .folders import rehash
from .models import Sample, sample

MODELS: Mapping[str, Callable[[], Sample]] = {
    "relu": lambda: sample(0, (16, 16), "relu", x_mean=3, y_mean=2, y_std=5),
    "leaky_relu": lambda: sample(1, (8,), "leaky_relu", outputs=2),
    "silu": lambda: sample(3, (30,), "silu", x_std=100),
    "tanh": lambda: sample(4, (8, 8, 8), "tanh", x_mean=1),
    "linear": lambda: sample(5, (), "relu", outputs=3, y_mean=2),
    "classes": lambda: sample(6, (16,), "gelu", outputs=3, gain=2, task="classification"),
}


def published_by_hand(s: Sample, folder: Path) -> Path:
    return with_manifest(folder, s, s.export(folder))


def with_manifest(folder: Path, s: Sample, reference: Reference) -> Path:
    fields = {
        "contract": 1,
        "model": {"activation": s.activation},
        "signature": {"task": s.task},
        "verification": {"batches": list(reference.batches)},
        "files": file_entries(folder),
    }
    write_manifest(folder, fields)
    return folder


# A published folder, to be read only, and what its files must agree with.
Exported = Callable[[str], tuple[Path, Reference]]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    @cache
    def of(kind: str) -> tuple[Path, Reference]:
        folder, s = tmp_path_factory.mktemp("mutants") / "published", MODELS[kind]()
        reference = s.export(folder)
        return with_manifest(folder, s, reference), reference

    return of


@pytest.fixture(scope="module")
def judged(exported: Exported) -> Callable[[str], list[Judgement]]:
    @cache
    def of(kind: str) -> list[Judgement]:
        return list(self_test(exported(kind)[0]))

    return of


@pytest.mark.parametrize("kind", MODELS)
def test_every_wrong_export_is_refused_for_its_reason(
    kind: str, judged: Callable[[str], list[Judgement]]
) -> None:
    found = judged(kind)
    assert [str(one) for one in found if one.verdict not in ("rejected", "accepted")] == []
    assert sum(one.verdict == "rejected" for one in found) > 85
    assert all(one.reason and one.rules for one in found if one.verdict == "rejected")


def test_numbers_do_the_work_too(judged: Callable[[str], list[Judgement]]) -> None:
    """Most wrong weights would be refused by their answers alone; what is not, is small."""
    weights = {one.mutant: one.rules for one in judged("relu") if "weights" in one.rules}
    small = {name for name, rules in weights.items() if rules == ["weights"]}
    assert "the last bit of one weight" in small
    assert not any("dropped" in name or "as " in name or "step" in name for name in small)
    assert len(weights) > 3 * len(small)


def test_every_row_of_the_tables_applies_to_some_model(
    judged: Callable[[str], list[Judgement]],
) -> None:
    """A row that names what no model has would be left out in silence."""
    applied = {(one.artifact, one.mutant) for kind in MODELS for one in judged(kind)}
    graphs = [name for table in mutants.GRAPH_CHANGES.values() for name in table]
    graphs += [*mutants.DECLARED, *(f"nearly {name}" for name in mutants.ACTIVATIONS)]
    everywhere = {(file, name) for file in files.MODEL_FILES for name in mutants.WEIGHT_CHANGES}
    rows = {(ONNX, name) for name in (*graphs, *mutants.MORE_WEIGHT_CHANGES)} | everywhere
    rows |= {(file, name) for file, name, *_ in mutants.CODE_CHANGES}
    assert rows - applied == set()


def test_a_kind_of_gelu_or_softmax_is_not_asked_of_what_has_none(
    judged: Callable[[str], list[Judgement]],
) -> None:
    names = {one.mutant for one in judged("linear")}
    assert not names & {"nearly gelu", "softmax over the batch", "activation left out"}
    assert "not in the target's units" not in {one.mutant for one in judged("classes")}


# What changes nothing, and what cannot be told.


# By the mutants' names: of model.onnx in a folder, all or those that are named.
Verdicts = Callable[..., dict[str, Judgement]]


@pytest.fixture
def verdicts(monkeypatch: pytest.MonkeyPatch) -> Verdicts:
    every = mutants.mutants

    def found(folder: Path, *names: str) -> dict[str, Judgement]:
        def some(held: Mapping[str, bytes], reference: Reference) -> Iterator[Mutant]:
            there = (one for one in every(held, reference) if one.artifact == ONNX)
            return (one for one in there if not names or one.name in names)

        monkeypatch.setattr(mutants, "mutants", some)
        return {one.mutant: one for one in self_test(folder)}

    return found


def test_a_weight_of_a_dead_unit_changes_nothing(
    verdicts: Verdicts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s = sample(0, (4,), "relu")
    with torch.no_grad():
        weights = s.model.state_dict()
        weights["network.0.weight"][0, 0] = 5  # the largest, which mutants choose
        weights["network.2.weight"][:, 0] = 0
    folder = published_by_hand(s, tmp_path / "published")
    name, last = "one weight off by 1e-2", "one last weight off by 1e-4"
    intact = verdicts(folder, name)[name]
    assert (intact.verdict, intact.rules) == ("rejected", ["weights"])
    monkeypatch.setattr(files, "disagreements", lambda *_: iter(()))
    found = verdicts(folder, name, last)
    assert found[name].verdict == "equivalent"
    assert found[last].verdict in ("rejected", "survived")


def test_columns_of_one_cannot_be_permuted(verdicts: Verdicts, tmp_path: Path) -> None:
    folder = published_by_hand(sample(0, (1,), "tanh", features=1), tmp_path / "published")
    found = verdicts(folder)
    for name in ("input columns reversed", "weights of permuted columns", "a weight transposed"):
        assert found[name].verdict == "equivalent"
    assert all(one.right for one in found.values())


def test_what_is_less_than_rounding_is_counted_apart(tmp_path: Path) -> None:
    """Targets of 1e9 stand 64 apart in float32: a shift by a little is lost in that."""
    s = sample(0, (30, 30), "leaky_relu", y_mean=1e9, y_std=1e3)
    found = list(self_test(published_by_hand(s, tmp_path / "published")))
    assert [one.mutant for one in found if one.verdict == "drowned"] == ["mean added"]
    assert all(one.right for one in found)


@pytest.mark.parametrize(
    ("content", "reason", "verdict"),
    [
        (lambda c: b"garbage", NUMBERS, "misjudged"),
        (lambda c: b"garbage", "", "refused"),
        (lambda c: c, "", "accepted"),
        (lambda c: c, NUMBERS, "equivalent"),
        (lambda c: c + b"\x0a\x00", "the signature is", "survived"),
    ],
)
def test_a_refusal_for_another_reason_proves_nothing(
    content: Callable[[bytes], bytes],
    reason: str,
    verdict: str,
    exported: Exported,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def one(held: Mapping[str, bytes], reference: Reference) -> list[Mutant]:
        return [Mutant("it", ONNX, content(held[ONNX]), reason)]

    monkeypatch.setattr(mutants, "mutants", one)
    assert [found.verdict for found in self_test(exported("linear")[0])] == [verdict]


def test_the_score_counts_what_was_refused_for_another_reason_as_not_refused() -> None:
    verdicts = ["rejected", "rejected", "survived", "misjudged", "accepted", "refused"]
    found = [Judgement("", "", v, [], "") for v in (*verdicts, "equivalent", "drowned")]  # type: ignore[arg-type]
    assert score(found)[0] == (
        "2 of 4 wrong exports rejected, 1 of 2 faithful ones accepted, 1 changed nothing, "
        "1 less than rounding"
    )
    assert [one.verdict for one in found if not one.right] == ["survived", "misjudged", "refused"]


# The short form.


@pytest.mark.parametrize("kind", MODELS)
def test_the_short_form_says_what_the_long_one_says(
    kind: str, exported: Exported, judged: Callable[[str], list[Judgement]], tmp_path: Path
) -> None:
    folder, reference = exported(kind)
    before = content(folder)
    short = list(self_check(folder, reference, tmp_path))
    long = {one.mutant: one for one in judged(kind) if one.artifact == ONNX}
    assert [one.verdict for one in short] == [long[one.mutant].verdict for one in short]
    assert {one.mutant for one in short} == mutants.TELLING & long.keys()
    assert sum(one.verdict == "rejected" for one in short) >= 20
    assert content(folder) == before


def test_every_telling_one_is_made_of_some_model(
    judged: Callable[[str], list[Judgement]],
) -> None:
    made = {one.mutant for kind in MODELS for one in judged(kind) if one.artifact == ONNX}
    assert made >= mutants.TELLING


# The alarm. Each takes a rule of the verifier out.


def pass_all(a: str, e: str, case: Case, *rest: object) -> Comparison:
    return Comparison(a, e, case.name, len(case.x), compared=len(case.x))


def pass_signature(*_: object) -> Comparison:
    return Comparison("model.onnx", "onnxruntime", "signature", 0)


def test_the_short_form_raises_the_alarm_too(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "compare", pass_all)
    found = list(self_check(*exported("relu"), tmp_path))
    wrong = {one.mutant for one in found if not one.right}
    assert {"rows in reverse", "a number for NaN", "nearly relu", "noise"} <= wrong


@pytest.mark.parametrize(
    ("rule", "without", "survivors"),
    [
        (
            "compare",
            pass_all,
            {"a number for NaN", "rows in reverse", "nearly relu", "answers as float16"},
        ),
        ("_signature", pass_signature, {"batch axis of another name"}),
    ],
)
def test_without_one_rule_mutants_survive(
    rule: str,
    without: Callable[..., Comparison],
    survivors: set[str],
    exported: Exported,
    verdicts: Verdicts,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(files, rule, without)
    found = verdicts(exported("relu")[0], *survivors)
    assert {name: one.verdict for name, one in found.items()} == dict.fromkeys(
        survivors, "survived"
    )


# The real command.


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_command_says_what_became_of_each_and_the_score(
    published: Path, job: Job, tmp_path: Path
) -> None:
    before = content(published)
    done = job(
        "verify",
        str(published),
        "--self-test",
        "--log-format",
        "json",
        env={"TMPDIR": str(tmp_path)},
    )
    assert (done.returncode, done.stdout) == (0, f"{published}\n"), done.stderr
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    each = [line for line in lines if line["event"] == "mutant"]
    wrong = [line for line in each if line["verdict"] == "rejected"]
    total = next(line for line in lines if line["event"] == "self-test")
    assert total["rejected"] == len(wrong) > 90
    assert total["message"].startswith(f"self-test: {len(wrong)} of {len(wrong)} wrong exports")
    bias = next(line for line in wrong if line["mutant"] == "biases dropped")
    assert (bias["artifact"], bias["rules"]) == (ONNX, ["bound", "noise", "torch", "weights"])
    assert "holds other values in 100 of 100 elements of network.0.bias" in bias["reason"]
    assert lines[-1]["name"] == "OK"
    assert content(published) == before
    assert list(tmp_path.iterdir()) == []


# The command with something taken out.
NO_WEIGHTS = "import job.verify.files as f; f.disagreements = lambda *_: iter(())"
NO_ONNX = """
import importlib.util as u
real = u.find_spec
u.find_spec = lambda name, *a: None if name == "onnx" else real(name, *a)
"""


def broken(breakage: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = f"{breakage}\nimport sys; from job.cli import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments, "--log-format", "json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_one_rule_mutants_survive_and_it_is_81(exported: Exported) -> None:
    done = broken(NO_WEIGHTS, "verify", str(exported("linear")[0]), "--self-test", "--quiet")
    assert (done.returncode, done.stdout) == (81, "")
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    survived = {line["mutant"] for line in lines if line.get("verdict") == "survived"}
    assert "the last bit of one weight" in survived
    assert {line["level"] for line in lines} == {"critical"}
    assert "cannot be trusted" in lines[-1]["message"]
    assert "wrong exports rejected" in lines[-1]["message"]


def test_without_onnx_it_says_what_to_install(published: Path) -> None:
    done = broken(NO_ONNX, "verify", str(published), "--self-test")
    assert (done.returncode, done.stdout) == (66, "")
    assert "install onnx" in done.stderr.splitlines()[-1]


def test_a_folder_that_is_wrong_itself_is_told_first(
    exported: Exported, tmp_path: Path, job: Job
) -> None:
    right, reference = exported("linear")
    folder = shutil.copytree(right, tmp_path / "published")
    held = {ONNX: (folder / ONNX).read_bytes()}
    name = "mean of the inputs left out"
    wrong = next(one for one in mutants.mutants(held, reference) if one.name == name)
    (folder / ONNX).write_bytes(wrong.content)
    rehash(folder)
    done = job("verify", str(folder), "--self-test", "--log-format", "json")
    assert done.returncode == 81
    assert '"mutant"' not in done.stderr
    assert "It parts from the model at input." in done.stderr
