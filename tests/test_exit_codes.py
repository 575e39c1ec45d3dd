"""Every code that the job can end with, each by two different real causes, through the command.

Not here: 0, which every other test shows; 75, which tests/test_resume.py does; and the other 69,
which tests/test_doctor.py does.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from job.cli import main
from job.errors import ExitCode, ReadWriteError
from job.publish import Space

from .conftest import ROOT, SMALL, environment, run_job
from .test_verify import edit_weights, no_bias, one_weight
from .verify.folders import rehash

Command = Callable[[Path, Path], list[str]]


def job(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "job", *arguments]


def train(*arguments: str) -> Command:
    return lambda published, tmp: job("train", *SMALL, "--output", f"{tmp}/out", *arguments)


def limited(shell: str, *arguments: str) -> Command:
    """The command in a shell that takes something away first."""
    return lambda published, tmp: [
        "bash",
        "-c",
        f'{shell} exec "$@"'.replace("TMP", str(tmp)),
        "bash",
        *train(*arguments)(published, tmp),
    ]


def spoiled(spoil: Callable[[Path], None]) -> Command:
    """`verify` of a copy of a published folder to which something was done."""

    def command(published: Path, tmp: Path) -> list[str]:
        spoil(shutil.copytree(published, tmp / "copy"))
        return job("verify", str(tmp / "copy"))

    return command


def cut(folder: Path) -> None:
    content = (folder / "model.pt2").read_bytes()
    (folder / "model.pt2").write_bytes(content[:-1])


def wrong(edit: Callable[[str, "np.ndarray"], "np.ndarray"]) -> Callable[[Path], None]:
    """A wrong model whose hashes fit: only its numbers tell."""

    def spoil(folder: Path) -> None:
        import onnx

        proto = onnx.load(folder / "model.onnx")
        edit_weights(edit)(proto)
        (folder / "model.onnx").write_bytes(proto.SerializeToString())
        rehash(folder)

    return spoil


def rows_of_text(published: Path, tmp: Path) -> list[str]:
    (tmp / "rows.npy").write_text("1,2,3")
    files = ("--input", str(tmp / "rows.npy"), "--output", str(tmp / "out.npy"))
    return job("predict", str(published), *files)


def held_module(name: str, content: str, *arguments: str) -> Command:
    """The command where a library is broken: what the job cannot foresee."""

    def command(published: Path, tmp: Path) -> list[str]:
        (tmp / "broken").mkdir()
        (tmp / "broken" / f"{name}.py").write_text(content)
        path = f"PYTHONPATH={tmp}/broken:{ROOT}"
        return ["env", path, *train(*arguments)(published, tmp)]

    return command


def as_somebody_else(prepare: str) -> Command:
    """As a user without rights; root would be let through everywhere."""
    # All that is imported later lies where somebody else may not look.
    code = (
        "import os, sys, job.cli, job.config, job.pipeline, torch._inductor.config;"
        "os.getuid() or os.setuid(54321); sys.exit(job.cli.main(sys.argv[1:]))"
    )

    def command(published: Path, tmp: Path) -> list[str]:
        place = "/tmp"
        script = f"""
            folder=$(mktemp -d {place}/nobody.XXXXXX); chmod 755 "$folder"; cd "$folder"
            cp {ROOT}/job.yaml . ; mkdir out; {prepare}
            PYTHONPATH={ROOT} {sys.executable} -c '{code}' train --output out
            code=$?; rm -rf "$folder"; exit $code
        """
        return ["bash", "-c", script]

    return command


CONSTANT = ("data.kind=noise", "data.noise=0.0", "quality.metrics={r2: {max: 2}}")

no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA works here")

CAUSES = [
    (64, "an unknown command", lambda published, tmp: job("bogus")),
    (64, "an unknown flag", lambda published, tmp: job("train", "--bogus")),
    (65, "a published file that was cut", spoiled(cut)),
    (65, "rows that are no array", rows_of_text),
    (66, "no job.yaml", train("--config", "/nowhere/job.yaml")),
    (66, "no folder to verify", lambda published, tmp: job("verify", f"{tmp}/nowhere")),
    pytest.param(69, "no CUDA", train("device=cuda"), marks=no_cuda),
    (70, "a library that fails", held_module("jinja2", "raise ZeroDivisionError('odd')")),
    (70, "a verifying process that dies", held_module("onnxruntime", "import os; os._exit(9)")),
    (71, "more rows than memory", train("data.samples=100000000000")),
    (71, "an allocation that fails", limited("ulimit -v 2500000;", "data.samples=40000000")),
    (73, "an output that is a file", lambda published, tmp: job("train", "--output", "job.yaml")),
    (73, "an output where no folder can be", lambda published, tmp: job("output.dir=/proc/x")),
    (74, "a file that may not grow", limited("ulimit -f 8;")),
    (77, "a configuration that may not be read", as_somebody_else("chmod 0 job.yaml;")),
    (77, "an output that may not be written", as_somebody_else("chmod 555 out;")),
    (78, "an unknown key", train("bogus=1")),
    (78, "a bad run id in the environment", limited("export JOB_RUN_ID=a/b;")),
    (80, "a loss that is not finite", train("train.optimizer={name: sgd, lr: 1e15}")),
    (80, "answers that are not finite", train("train.optimizer.lr=1e38", "train.batch_size=4000")),
    (81, "a published model without a bias", spoiled(wrong(no_bias))),
    (81, "a published model with one other weight", spoiled(wrong(one_weight))),
    (82, "a gate that is unmet", train("quality.metrics={r2: {min: 0.9999}, mse: {max: 1}}")),
    (82, "a metric that is unknown", train(*CONSTANT)),
]


@pytest.mark.parametrize(("code", "cause", "command"), CAUSES)
def test_each_code_by_its_cause(
    code: int, cause: str, command: Command, published: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    done = subprocess.run(
        command(published, tmp_path),
        cwd=ROOT,
        env=environment(JOB_TERMINATION_LOG=str(log)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (code, ""), f"{cause}: {done.stderr}"
    last = json.loads(done.stderr.splitlines()[-1])
    name = ExitCode(code).name
    assert (last["code"], last["message"].split(": ")[0]) == (code, f"{name} ({code})")
    assert ("Traceback" in done.stderr) == (cause == "a library that fails")
    if code != 77:  # there the log's own folder is closed to the user
        assert json.loads(log.read_text())["code"] == code
    assert not list(tmp_path.glob("out/runs/*"))
    pages = list(tmp_path.glob("out/failed/*/report.html"))
    assert bool(pages) == (code in (80, 82))
    for page in pages:
        text = page.read_text()
        assert f"{name} ({code}): nothing was published" in text
        assert "cpu (" in text  # the device that it ran on
        assert ("diverged at step" in text) == (cause == "a loss that is not finite")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB, where one can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False).returncode != 0:
        pytest.skip("NO DISK CAN BE MOUNTED HERE (needs root): a full one is not tested")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_74_before_training_and_leaves_the_old_model(
    output: Path, disk: Path
) -> None:
    shutil.copytree(output, disk, symlinks=True, dirs_exist_ok=True)
    with open(disk / "fill", "wb") as fill:
        fill.write(b"0" * (shutil.disk_usage(disk).free - 100_000))
    done = run_job("train", *SMALL, "seed=2", "--output", str(disk))
    assert done.returncode == 74, done.stderr
    reason = json.loads(done.stderr.splitlines()[-1])["message"]
    assert re.search(r"the run needs about \d{3},\d{3} bytes and \d{2},\d{3} are free", reason)
    assert '"event": "epoch"' not in done.stderr
    assert len(list((disk / "runs").iterdir())) == 1
    assert run_job("verify", str(disk / "latest")).returncode == 0


def test_a_disk_that_fills_up_later_is_74_with_the_same_numbers(disk: Path) -> None:
    space = Space(disk)
    space.require(1000)
    with (
        pytest.raises(ReadWriteError, match=r"the run needs about 600,288 bytes and 0 are free"),
        space,
        open(disk / "fill", "wb") as fill,
    ):
        fill.write(b"0" * 2**21)


def test_a_verdict_stands_where_its_evidence_cannot_be_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "failed").write_text("no folder")
    arguments = ("train", *SMALL, "quality.metrics={mse: {max: 0}}", "--output", str(tmp_path))
    assert main(arguments) == 82
    assert "could not be kept" in capsys.readouterr().err


def test_a_helper_process_that_the_kernel_kills_is_want_of_memory(tmp_path: Path) -> None:
    """Where memory runs out the kernel may choose the process that exports, and not the job's."""
    process = subprocess.Popen(
        job("train", *SMALL, "--output", str(tmp_path)),
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    helper = None
    while helper is None:
        assert process.poll() is None
        for child in children.read_text().split():
            if "job.forkserver" in Path(f"/proc/{child}/cmdline").read_text():
                helper = int(child)
        time.sleep(0.01)
    os.kill(helper, signal.SIGKILL)
    _, said = process.communicate()
    assert process.returncode == 71, said
    assert "memory" in said
    assert not list(tmp_path.glob("runs/*"))
