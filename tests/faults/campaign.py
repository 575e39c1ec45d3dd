"""What the campaigns share: the tiny run, its undisturbed result, and what must hold after a fault.

FAULTS_SEED and FAULTS_SHARE (of the full counts) choose what `make test-slow` runs.
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path

from job.manifest import read_manifest
from job.train.checkpoint import load_checkpoint
from tests.conftest import ROOT, environment

SEED = int(os.environ.get("FAULTS_SEED", "0"))
SHARE = float(os.environ.get("FAULTS_SHARE", "1"))

TINY = (
    *("data.samples=400", "train.epochs=3", "train.batch_size=128", "model.hidden=[4]"),
    *("export.formats=[torchscript, onnx]", "device=cpu", "threads=1"),
)
SAME = ("model.onnx", "model.torchscript.pt", "metrics.jsonl", "job.yaml")

CALLS = ("fsync", "rename", "renameat", "mkdir", "symlink", "unlink", "rmdir", "write", "ftruncate")


def share(count: int) -> int:
    return max(1, round(SHARE * count))


# As `python -m job`, but the helper processes start by the command that is named first.
STARTER = """
import runpy, sys
sys.executable = sys.argv.pop(1)
runpy.run_module("job", run_name="__main__", alter_sys=True)
"""


def train(
    output: Path, run_id: str = "one", *before: str, helpers: tuple[str, ...] = ()
) -> subprocess.Popen[str]:
    """The tiny run by the real command, behind a command that disturbs it, or its helpers."""
    command = [*before, sys.executable, "-m", "job"]
    if helpers:
        script = output.with_suffix(".helper")
        script.write_text(f'#!/bin/sh\nexec {shlex.join([*helpers, sys.executable])} "$@"\n')
        script.chmod(0o700)
        command = [sys.executable, "-c", STARTER, str(script)]
    return subprocess.Popen(
        [*command, "train", *TINY, "--output", str(output), "--run-id", run_id],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def traced(trace: Path, *inject: str) -> tuple[str, ...]:
    """strace of the operations on files, with faults put in."""
    options = [part for rule in inject for part in ("-e", f"inject={rule}")]
    return ("strace", "-qq", "-o", str(trace), "-e", f"trace={','.join(CALLS)}", *options)


def finish(output: Path, run_id: str = "one", *before: str) -> Path:
    """Runs until it is published."""
    process = train(output, run_id, *before)
    said = process.communicate()[1]
    assert process.returncode == 0, said
    return output / "runs" / run_id


def assert_sound(output: Path) -> None:
    """What is visible is whole, and what a run has saved loads."""
    for folder in (output / "runs").glob("*"):
        read_manifest(folder)  # raises where a file is not what the manifest says
    if (output / "latest").is_symlink():
        read_manifest(output / "latest")
    for checkpoints in output.glob("work/runs/*/checkpoints"):
        saved = [path for path in checkpoints.iterdir() if path.name.isdecimal()]
        assert not saved or load_checkpoint(checkpoints) is not None
        assert all(path.exists() for path in saved), "a damaged checkpoint was found"


def assert_same(folder: Path, whole: Path) -> None:
    for name in SAME:
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    assert not list((folder.parent.parent / "work" / "runs").iterdir())
