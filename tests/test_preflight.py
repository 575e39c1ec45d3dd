"""What would fail at the end fails before the first epoch."""

import json
import os
from pathlib import Path

import pytest

from job.config import load_config
from job.preflight import preflight

from .conftest import ROOT, SMALL, Job, run_job

# Run first by every new interpreter: in the preflight's, one bias of the ONNX file is dropped.
WRONG = """
import sys
if "job.preflight" in sys.orig_argv:
    import numpy, onnx
    from job import export
    right = export.write_onnx
    def wrong(program, path, *arguments):
        right(program, path, *arguments)
        model = onnx.load(path)
        for weight in model.graph.initializer:
            if weight.name == "network.0.bias":
                zeros = numpy.zeros(list(weight.dims), numpy.float32)
                weight.CopyFrom(onnx.numpy_helper.from_array(zeros, weight.name))
        onnx.save(model, path)
    export.write_onnx = wrong
"""


def run_with(boot: Path, output: Path) -> list[dict[str, object]]:
    """The events of a run in which every new interpreter runs what lies in `boot` first."""
    env = {"PYTHONPATH": os.pathsep.join([str(boot), str(ROOT)])}
    done = run_job("train", *SMALL, "--output", str(output), "--run-id", "one", env=env)
    assert done.stdout == ""
    assert not [line for line in done.stderr.splitlines() if '"event": "epoch"' in line]
    assert not list((output / "runs").iterdir())
    return [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]


def test_a_wrong_export_is_81_before_the_first_epoch(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(WRONG)
    last = run_with(tmp_path, tmp_path / "out")[-1]
    assert last["code"] == 81
    assert "before the training: the files do not agree" in str(last["message"])
    evidence = tmp_path / "out" / "failed" / "one"
    assert json.loads((evidence / "verification.json").read_text())["passed"] is False
    assert (evidence / "failing_input.npy").exists()
    assert "DIFFERS" in (evidence / "report.html").read_text()
    assert not list((tmp_path / "out" / "work" / "runs").iterdir())


@pytest.mark.parametrize(
    ("module", "content"), [("onnxscript", "raise ImportError('broken')"), ("onnxruntime", "1 / 0")]
)
def test_a_broken_library_is_found_before_the_first_epoch(
    module: str, content: str, tmp_path: Path
) -> None:
    (tmp_path / f"{module}.py").write_text(content)
    assert run_with(tmp_path, tmp_path / "out")[-1]["code"] in (70, 81)


@pytest.mark.parametrize(
    "keys",
    [
        (),
        ("model.hidden=[]",),
        ("model.hidden=[8, 4]", "model.activation=gelu"),
        ("data.kind=gaussians", "train.loss=cross_entropy"),
        ("data.kind=noise", "data.features=1", "data.samples=100000000000", "data.test=1e-6"),
        ("data.kind=noise", "data.noise=0.0"),
    ],
)
def test_every_faithful_model_passes(keys: tuple[str, ...], tmp_path: Path) -> None:
    """However many rows are asked for: it makes a few of its own."""
    preflight(load_config(None, list(keys)), tmp_path).require_agreement()


def test_check_does_it_alone(job: Job, tmp_path: Path) -> None:
    done = job("check", "--preflight", "data.samples=5000", f"output.dir={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    assert "samples: 5000" in done.stdout
    assert "comparisons of the untrained model agree" in done.stderr
    assert not (tmp_path / "out").exists()
