"""Where only onnxruntime and numpy are installed: hashes, goldens and the ONNX model are verified,
and what is not is said.
"""

import importlib.metadata
import json
import re
import subprocess
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from packaging.requirements import Requirement

from tests.conftest import ROOT, Job

from .folders import rehash
from .test_hostile_files import hostile_program, hostile_torchscript

LOCK = dict(
    re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / "requirements/cpu.txt").read_text(), re.MULTILINE)
)


def with_dependencies(*names: str) -> set[str]:
    """These distributions and all that they say they need."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            needs = map(Requirement, importlib.metadata.requires(name) or ())
            waiting += [n.name for n in needs if n.marker is None or n.marker.evaluate()]
    return found


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment made of the installed files of these distributions alone.

    Linked, not installed again: they are the lock's own, and a test has no network.
    """
    folder = tmp_path_factory.mktemp("bare") / "venv"
    venv.create(folder, symlinks=True)
    site = next(folder.glob("lib/python*/site-packages"))
    for name in with_dependencies("onnxruntime", "numpy"):
        distribution = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or ()} - {".."}:
            (site / top).symlink_to(str(distribution.locate_file(top)))
    return folder / "bin" / "python"


Bare = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def bare(bare_python: Path) -> Bare:
    """`python -m job ...` in that environment, told nothing by this one's variables."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(bare_python), "-m", "job", *arguments, "--log-format", "json"]
        environment = {"PYTHONPATH": str(ROOT)}
        return subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )

    return run


def test_the_environment_holds_what_the_lock_pins_of_these_and_nothing_else(
    bare_python: Path,
) -> None:
    code = "from importlib.metadata import distributions\n"
    code += "print(*(f'{d.name}=={d.version}' for d in distributions()))"
    done = subprocess.run(
        [str(bare_python), "-I", "-c", code], capture_output=True, text=True, check=True
    )
    names = {"onnxruntime", "numpy", "protobuf", "flatbuffers", "packaging"}
    assert sorted(done.stdout.split()) == sorted(f"{name}=={LOCK[name]}" for name in names)
    for module in ("torch", "onnx", "pydantic", "yaml", "safetensors", "jinja2"):
        command = [str(bare_python), "-I", "-c", f"import {module}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert f"No module named '{module}'" in done.stderr


def test_what_can_be_verified_is_and_what_cannot_is_listed(published: Path, bare: Bare) -> None:
    done = bare("verify", str(published))
    assert (done.returncode, done.stdout) == (0, f"{published}\n"), done.stderr
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    skipped = {line["message"] for line in lines if line["event"] == "skipped"}
    weights = "its weights, as the library that reads it is missing"
    assert skipped == {
        "skipped: model.torchscript.pt in torch.jit: torch is not installed",
        "skipped: model.pt2 in torch.export: torch is not installed",
        "skipped: test_data_set_0/input_0.pb: onnx is not installed",
        "skipped: test_data_set_0/output_0.pb: onnx is not installed",
        f"skipped: model.onnx: {weights}",
        f"skipped: model.torchscript.pt: {weights}",
        f"skipped: model.pt2: {weights}",
    }
    verified = next(line for line in lines if line["event"] == "verified")
    assert verified["comparisons"] > 30


def biases_dropped(folder: Path) -> None:
    model = onnx.load(folder / "model.onnx")
    bias = next(w for w in model.graph.initializer if w.name == "network.0.bias")
    bias.CopyFrom(onnx.numpy_helper.from_array(np.zeros(bias.dims, np.float32), bias.name))
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def another_golden(folder: Path) -> None:
    golden = np.load(folder / "golden" / "output.npy")
    np.save(folder / "golden" / "output.npy", golden * np.float32(1.001))


def other_weights(folder: Path) -> None:
    """The file's last bytes are a weight's."""
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + np.float32(1.5).tobytes())


@pytest.mark.parametrize("wrong", [biases_dropped, another_golden, other_weights])
def test_wrong_files_with_fitting_hashes_are_refused(
    wrong: Callable[[Path], None], copy: Path, bare: Bare
) -> None:
    wrong(copy)
    rehash(copy)
    assert bare("verify", str(copy)).returncode == 81


@pytest.mark.parametrize("name", ["model.onnx", "model.pt2", "golden/input.npy"])
def test_a_flipped_bit_is_refused_in_files_that_are_skipped_too(
    name: str, copy: Path, bare: Bare
) -> None:
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    done = bare("verify", str(copy))
    assert done.returncode == 65
    assert f"{name} is not the file that was published" in done.stderr


def test_nothing_that_is_code_is_loaded_even_where_its_hash_fits(
    copy: Path, bare: Bare, tmp_path: Path
) -> None:
    """So this is how a folder of doubtful origin is verified."""
    hostile_torchscript(copy / "model.torchscript.pt", tmp_path / "marker")
    hostile_program(copy / "model.pt2", tmp_path / "marker")
    rehash(copy)
    done = bare("verify", str(copy))
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "marker").exists()


def answers(run: Job | Bare, folder: Path, source: Path, target: Path) -> Any:
    done = run("predict", str(folder), "--input", str(source), "--output", str(target))
    assert (done.returncode, done.stdout) == (0, f"{target}\n"), done.stderr
    return np.load(target)


def test_predict_answers_as_it_does_where_all_is_installed(
    published: Path, bare: Bare, job: Job, tmp_path: Path
) -> None:
    rows = np.random.default_rng(0).standard_normal((1000, 10)).astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    one = answers(bare, published, tmp_path / "rows.npy", tmp_path / "bare.npy")
    other = answers(job, published, tmp_path / "rows.npy", tmp_path / "full.npy")
    assert np.array_equal(one, other)
    golden = published / "golden"
    again = answers(bare, published, golden / "input.npy", tmp_path / "golden.npy")
    np.testing.assert_allclose(again, np.load(golden / "output.npy"), rtol=1e-5, atol=1e-5)


def test_the_self_test_says_what_it_needs(published: Path, bare: Bare) -> None:
    done = bare("verify", str(published), "--self-test")
    assert (done.returncode, done.stdout) == (66, "")
    assert "install onnx" in done.stderr.splitlines()[-1]
