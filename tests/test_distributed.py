"""Several processes train as one: torchrun itself, with real processes, signals and kills."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from job.errors import ConfigError
from job.ranks import Ranks, ranks_of

from .conftest import ROOT, children_of, environment, eventually, manifest_of, run_job
from .test_resume import events

# 3200 rows to train on: 8 batches of 384 an epoch and one of 128, which 3 processes share unevenly.
KEYS = ("data.samples=4000", "train.epochs=2", "train.batch_size=384", "device=cpu", "threads=1")
# Steps enough to meet the training in the middle.
LONG = ("data.samples=400000", "train.epochs=50", "train.checkpoint={every_seconds: 0.2}")
# Enough to be met in the middle, few enough to be run to the end.
FEW = ("train.epochs=8", "data.samples=200000", "train.checkpoint={every: 100}")
# What torchrun tells one process.
OF_ONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")


@contextmanager
def torchrun(
    folder: Path,
    processes: int,
    *arguments: str,
    options: tuple[str, ...] = (),
    program: tuple[str, ...] = ("-m", "job"),
) -> Iterator[subprocess.Popen[str]]:
    """The job under torchrun, with its streams in files of `folder`; gone afterwards."""
    with open(folder / "out", "w") as out, open(folder / "err", "w") as err:
        process = subprocess.Popen(
            [
                *TORCHRUN,
                f"--nproc-per-node={processes}",
                "--standalone",
                *options,
                *(*program, "train", *KEYS, *arguments, "--output", str(folder / "output")),
            ],
            cwd=ROOT,
            env=environment(JOB_TERMINATION_LOG=str(folder / "termination")),
            stdout=out,
            stderr=err,
            text=True,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            for pid in children_of(process.pid):
                os.kill(pid, signal.SIGKILL)
        process.kill()
        process.wait()


def run(folder: Path, processes: int, *arguments: str) -> int:
    folder.mkdir(exist_ok=True)
    with torchrun(folder, processes, *arguments) as process:
        return process.wait(timeout=300)


def said(folder: Path) -> list[dict[str, Any]]:
    """The job's own events; torchrun's words stand between them."""
    lines = (folder / "err").read_text().splitlines()
    return events("\n".join(line for line in lines if line.startswith('{"time"')))


def termination(folder: Path) -> dict[str, Any]:
    entry: dict[str, Any] = json.loads((folder / "termination").read_text())
    return entry


def curve(run: Path) -> list[tuple[float, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["training_loss"], line["validation"]["loss"]) for line in lines]


def worker(process: subprocess.Popen[str], rank: int) -> int:
    """The process id of that rank."""
    for pid in children_of(process.pid):
        if f"RANK={rank}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            return pid
    raise AssertionError(f"no rank {rank}")


def checkpointed(folder: Path) -> bool:
    return any((folder / "output" / "work" / "runs").glob("one/checkpoints/[0-9]*"))


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes ran whose torchrun was told to end, to be read only."""
    folder = tmp_path_factory.mktemp("cut")
    with torchrun(folder, 2, *FEW, "--run-id", "one") as process:
        eventually(lambda: any(e["event"] == "epoch" for e in said(folder)))
        process.terminate()
        assert process.wait(timeout=60) == 1  # torchrun's own; the log tells the job's
    return folder


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes ran long of which one was told to end, to be read only."""
    folder = tmp_path_factory.mktemp("stopped")
    with torchrun(folder, 2, *LONG, "--run-id", "one") as process:
        eventually(lambda: any(e["event"] == "epoch" for e in said(folder)))
        os.kill(worker(process, 1), signal.SIGTERM)
        assert process.wait(timeout=60) == 1
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process under torchrun publishes, where torch.distributed refuses to be touched."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "one.py").write_text(
        "import sys, torch\n"
        "def refuse(*_, **__): raise SystemExit('touched')\n"
        "torch.distributed.init_process_group = refuse\n"
        "from job.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    options = ("--output", str(folder), "--run-id", "one")
    done = subprocess.run(
        [sys.executable, str(folder / "one.py"), "train", *KEYS, *options],
        env=environment(**OF_ONE),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "one"


def test_three_processes_publish_what_one_would(alone: Path, tmp_path: Path) -> None:
    assert run(tmp_path / "three", 3, "--run-id", "one") == 0
    published = tmp_path / "three" / "output" / "runs" / "one"
    assert (tmp_path / "three" / "out").read_text() == f"{published}\n"
    manifest = manifest_of(published)
    assert manifest["device"]["world_size"] == 3
    # 8 times 128 and of the last 128 rows 43, 43 and 42.
    assert manifest["training"]["rows_by_rank"] == [1067, 1067, 1066]
    assert run_job("verify", str(published)).returncode == 0
    names = [entry["event"] for entry in said(tmp_path / "three")]
    assert names.count("epoch") == 2  # the others say nothing
    assert names.count("published") == 1
    assert termination(tmp_path / "three")["code"] == 0
    assert run(tmp_path / "three", 3, "--run-id", "one") == 0
    assert said(tmp_path / "three")[0]["event"] == "published_before"

    assert manifest_of(alone)["training"]["rows_by_rank"] == [3200]
    assert manifest_of(alone)["fingerprint"] != manifest["fingerprint"]
    for got, wanted in zip(curve(published), curve(alone), strict=True):
        assert got == pytest.approx(wanted, rel=1e-4)


# One process imports torch and forks groups of 1, 2 and 3, one group after the other.
CURVES = """
import json, os, socket, sys
import torch
from pathlib import Path
from job.config import load_config
from job.data import load_data
from job.model import build_model
from job.ranks import Ranks, joined
from job.train import train
torch.set_num_threads(1)

def curves(ranks, folder, cases):
    with joined(ranks, "cpu"):
        for number, keys in enumerate(cases):
            config = load_config(None, keys)
            data = load_data(config.data, 0, 2**33, config.train.task)
            model = build_model(config, data.training.x, data.training.y, len(data.classes))
            checkpoints = Path(folder, f"checkpoints-{ranks.size}-{number}")
            cpu = torch.device("cpu")
            done = train(model, data, config, cpu, checkpoints, lambda _: None, ranks)
            losses = [[r.training_loss, r.validation_loss] for r in done.epochs]
            Path(folder, f"{ranks.size}-{ranks.rank}-{number}").write_text(json.dumps(losses))

for size in (1, 2, 3):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE=str(size))
    children = []
    for rank in range(size):
        children.append(os.fork())
        if children[-1] == 0:
            os.environ["RANK"] = str(rank)
            curves(Ranks(rank, size, rank, size), sys.argv[1], json.loads(sys.argv[2]))
            os._exit(0)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * size
"""
CLASSES = ("data.kind=gaussians", "data.features=3", "train.loss=cross_entropy")
CASES: dict[str, tuple[str, ...]] = {
    "adam": (),
    "adamw": ("train.optimizer.name=adamw",),
    "adamx": ("train.optimizer.name=adamx",),
    # Short windows: the losses move its learning rate in these few steps.
    "adamz": (
        "train.optimizer={name: adamz, patience: 4, stagnation_period: 2}",
        "train.schedule.name=constant",
    ),
    "sgd": ("train.optimizer={name: sgd, lr: 0.1}",),
    "clipped": ("train.grad_clip=0.1",),
    "classes": CLASSES,
    "autograd": ("train.loss=huber", "train.grad_clip=0.1"),
    "weighted classes": (*CLASSES, "train.class_weights=[1.0, 7.0]"),
    # The last batch has one row: of three processes two have none.
    "one row": ("data.samples=339", "train.batch_size=6"),
    "one row, autograd": ("data.samples=339", "train.batch_size=6", "train.loss=mae"),
}


@pytest.fixture(scope="module")
def curves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """<size>-<rank>-<case>: the losses that each of so many processes has seen."""
    folder = tmp_path_factory.mktemp("curves")
    (folder / "curves.py").write_text(CURVES)
    cases = json.dumps([[*KEYS, *keys] for keys in CASES.values()])
    subprocess.run(
        [sys.executable, str(folder / "curves.py"), str(folder), cases],
        env=environment(),
        check=True,
        timeout=300,
    )
    return folder


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("processes", [2, 3])
def test_the_loss_curve_is_that_of_one_process(curves: Path, processes: int, case: str) -> None:
    number = list(CASES).index(case)
    wanted = json.loads((curves / f"1-0-{number}").read_text())
    for rank in range(processes):
        got = json.loads((curves / f"{processes}-{rank}-{number}").read_text())
        for losses, single in zip(got, wanted, strict=True):
            assert losses == pytest.approx(single, rel=1e-4)


def test_sigterm_to_torchrun_saves_and_the_same_number_goes_on(cut: Path, tmp_path: Path) -> None:
    assert (termination(cut)["code"], termination(cut)["name"]) == (75, "INTERRUPTED")
    assert checkpointed(cut)
    whole, rest = tmp_path / "whole", tmp_path / "rest"
    assert run(whole, 2, *FEW, "--run-id", "one") == 0
    shutil.copytree(cut, rest, symlinks=True)
    assert run(rest, 2, *FEW, "--run-id", "one") == 0
    assert any(entry["event"] == "resumed" for entry in said(rest))
    files = ("model.onnx", "model.safetensors", "model.torchscript.pt", "metrics.jsonl")
    for name in files:
        one, other = (f / "output" / "runs" / "one" / name for f in (whole, rest))
        assert one.read_bytes() == other.read_bytes(), name


def test_a_signal_to_one_process_stops_all_with_the_state_saved(stopped: Path) -> None:
    assert termination(stopped)["code"] == 75
    assert checkpointed(stopped)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_job_which_says_why(tmp_path: Path, rank: int) -> None:
    with torchrun(tmp_path, 2, *LONG, "--run-id", "one") as process:
        eventually(lambda: checkpointed(tmp_path))
        os.kill(worker(process, rank), signal.SIGKILL)
        assert process.wait(timeout=30) == 1
    entry = termination(tmp_path)
    assert entry["code"] == 74
    assert "another of the 2 processes is gone" in entry["reason"]
    assert not (tmp_path / "output" / "latest").exists()


# The second stops and is killed while the first sends it more than their sockets hold.
STUCK = """
import os, signal, socket, threading, time
import torch
from job.errors import ProcessLost
from job.ranks import Ranks, joined

with socket.create_server(("127.0.0.1", 0)) as server:
    port = server.getsockname()[1]
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE="2")
other = os.fork()
os.environ["RANK"] = "0" if other else "1"
if not other:
    with joined(Ranks(1, 2), "cpu"):
        for size in (2, 2**24):
            torch.distributed.broadcast(torch.zeros(size), 0, async_op=True)
        time.sleep(1)  # until the first has heard that it may send
        os.kill(os.getpid(), signal.SIGSTOP)
try:
    with joined(ranks := Ranks(0, 2), "cpu"):
        os.waitpid(other, os.WUNTRACED)
        threading.Timer(1, os.kill, (other, signal.SIGKILL)).start()
        SEND
except ProcessLost:
    os._exit(os.WTERMSIG(os.waitpid(other, 0)[1]))
"""


@pytest.mark.parametrize(
    "send",
    [
        "ranks.from_first(lambda: bytes(2**26))",
        "for n in (2, 2**24): ranks._collective(torch.distributed.broadcast, torch.ones(n), src=0)",
    ],
)
def test_a_process_that_is_sending_to_one_that_is_killed_ends_too(
    send: str, tmp_path: Path
) -> None:
    """gloo itself does not end a send that had begun when the connection broke."""
    (tmp_path / "stuck.py").write_text(STUCK.replace("SEND", send))
    process = [sys.executable, str(tmp_path / "stuck.py")]
    done = subprocess.run(process, env=environment(), timeout=120, check=False)
    assert done.returncode == signal.SIGKILL  # what the other was ended by


def test_what_ends_while_a_wait_for_it_runs_out_of_time_has_not_failed() -> None:
    spoken = Future[None]()

    def late() -> None:
        if not spoken.done():
            spoken.set_result(None)
            raise TimeoutError
        spoken.result()

    Ranks(0, 2)._wait(late, spoken.done)


# The job itself, with less patience than the ten minutes of a real run.
IMPATIENT = """
import runpy
from datetime import timedelta
from job import ranks
ranks.SILENCE = timedelta(seconds=10)
runpy.run_module("job", run_name="__main__", alter_sys=True)
"""


def test_a_silent_process_ends_the_job_which_says_why(stopped: Path, tmp_path: Path) -> None:
    """A stopped process keeps its connections: only time tells."""
    (tmp_path / "impatient.py").write_text(IMPATIENT)
    # From a checkpoint: the first has something to hold, and no long silence is due before it.
    shutil.copytree(stopped / "output", tmp_path / "output", symlinks=True)
    program = (str(tmp_path / "impatient.py"),)
    with torchrun(tmp_path, 2, *LONG, "--run-id", "one", program=program) as process:
        eventually(lambda: any(e["event"] == "epoch" for e in said(tmp_path)))
        silent = worker(process, 0)
        os.kill(silent, signal.SIGSTOP)
        eventually(lambda: any(e["event"] == "end" for e in said(tmp_path)))
        os.kill(silent, signal.SIGKILL)  # as torchrun does half a minute later
        assert process.wait(timeout=60) == 1
    entry = termination(tmp_path)
    assert entry["code"] == 74
    assert "does not answer (" in entry["reason"]
    assert checkpointed(tmp_path)


def test_another_number_of_processes_goes_on_and_says_why_bytes_may_differ(
    cut: Path, tmp_path: Path
) -> None:
    output = shutil.copytree(cut / "output", tmp_path / "output", symlinks=True)
    done = run_job("train", *KEYS, *FEW, "--output", str(output), "--run-id", "one")
    assert done.returncode == 0, done.stderr
    names = [entry["event"] for entry in events(done.stderr)]
    assert "resumed" in names
    change = next(entry for entry in events(done.stderr) if entry["event"] == "world_size")
    assert (change["begun"], change["now"]) == (2, 1)
    assert "bytes may differ" in change["message"]


def test_torchrun_restarts_and_the_run_resumes(tmp_path: Path) -> None:
    few = ("data.samples=200000", "train.epochs=8", "train.checkpoint={every_seconds: 0.2}")
    restarts = ("--max-restarts=1", "--monitor-interval=0.2")
    with torchrun(tmp_path, 2, *few, "--run-id", "one", options=restarts) as process:
        eventually(lambda: checkpointed(tmp_path))
        os.kill(worker(process, 1), signal.SIGKILL)
        assert process.wait(timeout=120) == 0
    manifest = manifest_of(tmp_path / "output" / "runs" / "one")
    assert manifest["training"]["resumed"] == 1
    assert any(entry["event"] == "resumed" for entry in said(tmp_path))
    assert termination(tmp_path)["code"] == 0


def test_a_verdict_of_the_training_is_every_processes(tmp_path: Path) -> None:
    lr = "train.optimizer={name: sgd, lr: 1e15}"
    assert run(tmp_path, 2, lr, "--run-id", "one") == 1
    assert termination(tmp_path)["name"] == "DIVERGED"
    assert (tmp_path / "output" / "failed" / "one" / "report.html").exists()


def test_what_stops_the_first_ends_the_others(tmp_path: Path) -> None:
    (tmp_path / "output").write_text("no folder")
    assert run(tmp_path, 2) == 1
    assert termination(tmp_path)["code"] == 73


def test_a_batch_that_cannot_be_divided_is_a_fault_of_the_configuration() -> None:
    Ranks(0, 2).require_multiple(384)
    with pytest.raises(ConfigError, match=r"multiple of the 2 processes.*384 would do"):
        Ranks(0, 2).require_multiple(385)


# As `python -m job`, but each process leaves its exit code in a file.
TELLING = """
import os, sys
from pathlib import Path
from job import interrupt
from job.cli import last_words, main
interrupt.install(last_words)
code = main(sys.argv[1:])
Path(__file__).with_name("code" + os.environ["RANK"]).write_text(str(code))
os._exit(code)
"""


@pytest.mark.parametrize(("gate", "codes"), [("0.0001", ("82", "74")), ("1e9", ("0", "0"))])
def test_nobody_succeeds_before_the_first_has(
    gate: str, codes: tuple[str, str], tmp_path: Path
) -> None:
    """Else nobody would be there when the first is started again, as Kubernetes does."""
    (tmp_path / "telling.py").write_text(TELLING)
    gated, program = f"quality.metrics={{mse: {{max: {gate}}}}}", (str(tmp_path / "telling.py"),)
    with torchrun(tmp_path, 2, gated, program=program) as process:
        assert process.wait(timeout=120) == (0 if codes[0] == "0" else 1)
    assert ((tmp_path / "code0").read_text(), (tmp_path / "code1").read_text()) == codes


def test_one_process_never_touches_torch_distributed(alone: Path) -> None:
    """Nor one under torchrun: there is nobody to talk to."""
    assert ranks_of(OF_ONE) == ranks_of({}) == Ranks()
    assert manifest_of(alone)["device"]["world_size"] == 1


def test_shares_are_even_and_all() -> None:
    three = Ranks(0, 3)
    assert three.shares(384) == [128, 128, 128]
    assert three.shares(128) == [43, 43, 42]
    assert three.shares(1) == [1, 0, 0]
    assert Ranks().shares(5) == [5]


@pytest.mark.parametrize(
    "environment",
    [
        {"RANK": "0"},
        {"RANK": "x", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"},
        {"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"},
    ],
)
def test_an_environment_that_is_not_torchruns_is_a_fault(environment: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="environment"):
        ranks_of(environment)


def test_torchruns_environment() -> None:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    assert ranks_of(dict(zip(names, "3412", strict=True))) == Ranks(3, 4, 1, 2)
    assert ranks_of({}) == Ranks()
