"""Cut off anywhere, the same command goes on and ends with the same bytes."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import ROOT, children_of, environment, manifest_of, run_job, wait_until_gone
from .test_reproducible import SAME

STEP = "job.train.backprop:Backpropagation.step"
# 7 steps an epoch, a checkpoint after each epoch.
KEYS = ("data.samples=4000", "train.epochs=3", "train.batch_size=512", "device=cpu", "threads=1")


def disturbed(
    action: str, moment: str, nth: int, *arguments: str, **changed: str
) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.wrapped", action, moment, str(nth)]
    return subprocess.Popen(
        [*command, "train", *KEYS, *arguments],
        cwd=ROOT,
        env=environment(**changed),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def events(stderr: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stderr.splitlines()]


def epochs(said: list[dict[str, Any]]) -> list[int]:
    return [entry["epoch"] for entry in said if entry["event"] == "epoch"]


def assert_as_if_never_cut_off(folder: Path, whole: Path, resumed: int) -> None:
    for name in SAME:
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    manifest, wanted = manifest_of(folder), manifest_of(whole)
    assert manifest["training"]["resumed"] == resumed
    for field in ("fingerprint", "signature", "data", "metrics"):
        assert manifest[field] == wanted[field], field
    for field in ("epochs", "steps"):
        assert manifest["training"][field] == wanted["training"][field]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing disturbs."""
    output = tmp_path_factory.mktemp("whole") / "out"
    done = run_job("train", *KEYS, "--output", str(output))
    assert done.returncode == 0, done.stderr
    return output / "latest"


# Where a kill comes, in the order of the run, and the epochs that the attempt sees to their end.
# What the first saves that sees the last epoch is damaged: that costs the next one interval.
KILLS = [
    ("job.pipeline:load_data", 1, []),
    ("job.pipeline:Artifacts", 1, []),
    (STEP, 3, []),
    (STEP, 10, [1]),  # in the middle of the second
    ("job.train.checkpoint:move_folder", 1, [2]),  # the checkpoint is written, not renamed
    (STEP, 5, []),  # the second again
    ("job.pipeline:reference_of", 1, [2, 3]),
    ("job.pipeline:verify_in_fresh_process", 1, [3]),
    ("job.publish:write_manifest", 1, []),
    ("job.publish:move_folder", 1, []),
]


def test_killed_at_every_stage_it_ends_with_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    options = ("--output", str(tmp_path), "--run-id", "one")
    for moment, nth, seen in KILLS:
        process = disturbed("SIGKILL", moment, nth, *options)
        said = process.communicate()[1]
        assert process.returncode == -signal.SIGKILL, (moment, said)
        assert epochs(events(said)) == seen, moment
        damaged = any(entry["event"] == "checkpoint_damaged" for entry in events(said))
        assert damaged == (seen == [3]), moment
        assert not list((tmp_path / "runs").iterdir()), moment
        if seen == [2, 3]:
            (checkpoint,) = tmp_path.glob("work/runs/one/checkpoints/21")
            (checkpoint / "tensors.safetensors").write_bytes(b"")
    # Once more, after it became visible: it is published all the same.
    process = disturbed("SIGKILL", "job.publish:_move_latest", 1, *options)
    said = process.communicate()[1]
    assert process.returncode == -signal.SIGKILL, said
    assert not (tmp_path / "latest").is_symlink()
    done = run_job("train", *KEYS, *options)
    assert done.returncode == 0, done.stderr
    assert "published_before" in done.stderr
    assert_as_if_never_cut_off(tmp_path / "latest", whole, len(KILLS))
    assert not list((tmp_path / "work" / "runs").iterdir())


def test_two_threads_give_the_same_bytes_cut_off_or_not(tmp_path: Path) -> None:
    wide = ("model.hidden=[512]", "threads=2", "--run-id", "one", "--output")
    for name in ("whole", "cut"):
        if name == "cut":
            process = disturbed(
                "SIGKILL",
                STEP,
                10,
                *wide,
                str(tmp_path / name),
            )
            process.communicate()
            assert process.returncode == -signal.SIGKILL
        done = run_job("train", *KEYS, *wide, str(tmp_path / name))
        assert done.returncode == 0, done.stderr
    one, other = (tmp_path / name / "runs" / "one" for name in ("whole", "cut"))
    assert manifest_of(one)["device"]["threads"] == 2
    assert_as_if_never_cut_off(other, one, 1)


# Signals.

MOMENTS = [
    ("import:torch", 1),
    ("job.pipeline:choose_device", 1),
    ("job.pipeline:claim", 1),
    ("job.record:say_start", 1),
    ("job.pipeline:load_data", 1),
    ("job.pipeline:Artifacts", 1),
    ("job.artifacts:reference_of", 1),
    (STEP, 1),
    (STEP, 4),
    ("job.train.loop:evaluate", 1),
    ("job.train.loop:save_checkpoint", 1),
    ("job.train.checkpoint:move_folder", 1),
    ("job.pipeline:evaluate", 1),
    ("job.pipeline:reference_of", 1),
    ("job.forkserver:_packed", 3),  # the process that exports is asked for the trained files
    ("job.pipeline:verify_in_fresh_process", 1),
    ("job.forkserver:_packed", 5),  # the verifying process is asked
    ("job.record:write_verification", 1),
    ("job.record:write_report", 1),
    ("job.publish:write_manifest", 1),
]


def test_interrupted_at_every_stage_it_is_75_and_ends_with_the_same_bytes(
    whole: Path, tmp_path: Path
) -> None:
    assert len(MOMENTS) >= 20
    log, output = tmp_path / "log", tmp_path / "out"
    options = ("--output", str(output))
    attempts = 0
    for number, (moment, nth) in enumerate(MOMENTS):
        action = ("SIGTERM", "SIGINT")[number % 2]
        process = disturbed(action, moment, nth, *options, JOB_TERMINATION_LOG=str(log))
        out, said = process.communicate()
        assert (process.returncode, out) == (75, ""), (moment, said)
        last = events(said)[-1]
        assert (last["code"], last["name"]) == (75, "INTERRUPTED"), moment
        assert last["message"].startswith("INTERRUPTED (75): ")
        assert action in last["message"]
        assert json.loads(log.read_text())["code"] == 75, moment
        log.unlink()
        assert "Traceback" not in said
        assert not list(output.glob("runs/*")), moment
        attempts += any(entry["event"] == "start" for entry in events(said))
    # One that comes after it became visible changes nothing.
    process = disturbed("SIGTERM", "job.publish:_move_latest", 1, *options)
    out, said = process.communicate()
    assert process.returncode == 0, said
    assert out.startswith(str(output))
    assert attempts > 15
    resumed = manifest_of(output / "latest")["training"]["resumed"]
    assert attempts <= resumed <= len(MOMENTS)  # a signal may come between the claim and its event
    assert_as_if_never_cut_off(output / "latest", whole, resumed)
    assert not list((output / "work" / "runs").iterdir())


@pytest.fixture
def held(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A run that is in a library call which takes its time."""
    process = disturbed("hold", "job.pipeline:reference_of", 1, "--output", str(tmp_path))
    assert process.stderr is not None
    assert any(line == "held\n" for line in process.stderr)
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(("second", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_second_signal_ends_it_at_once(
    first: signal.Signals,
    second: signal.Signals,
    code: int,
    held: subprocess.Popen[str],
    whole: Path,
    tmp_path: Path,
) -> None:
    held.send_signal(first)
    with pytest.raises(subprocess.TimeoutExpired):
        held.wait(timeout=1)  # what is in flight ends first
    held.send_signal(second)
    assert held.wait() == code
    assert held.stderr is not None
    last = json.loads(held.stderr.read().splitlines()[-1])
    assert (last["code"], last["name"]) == (code, second.name)
    if first == second == signal.SIGTERM:
        done = run_job("train", *KEYS, "--output", str(tmp_path))
        assert done.returncode == 0, done.stderr
        assert_as_if_never_cut_off(tmp_path / "latest", whole, 1)


@pytest.mark.parametrize("command", ["verify", "predict"])
def test_a_command_with_nothing_to_save_ends_with_the_first_signal(
    command: str, whole: Path, tmp_path: Path
) -> None:
    arguments = {
        "verify": ("job.verify:verify_published", "verify", str(whole)),
        "predict": (
            *("job.predict:predict_file", "predict", str(whole)),
            *("--input", str(whole / "golden" / "input.npy"), "--output", str(tmp_path / "y.npy")),
        ),
    }[command]
    process = subprocess.run(
        [sys.executable, "-m", "tests.wrapped", "SIGTERM", arguments[0], "1", *arguments[1:]],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 143, process.stderr
    assert json.loads(process.stderr.splitlines()[-1])["code"] == 143


def test_a_process_that_helps_ends_with_the_one_it_helps(tmp_path: Path) -> None:
    """Killed while another process exports: nobody goes on in the background."""
    process = disturbed("hold", "job.forkserver:_packed", 3, "--output", str(tmp_path))
    assert process.stderr is not None
    assert any(line == "held\n" for line in process.stderr)
    (server,) = children_of(process.pid)
    helpers = [server, *children_of(server)]
    assert len(helpers) == 2
    process.kill()
    process.communicate()
    for helper in helpers:
        wait_until_gone(helper)


def test_without_an_id_only_the_same_configuration_is_adopted(tmp_path: Path) -> None:
    process = disturbed("SIGTERM", STEP, 3, "--output", str(tmp_path))
    process.communicate()
    (left,) = (tmp_path / "work" / "runs").iterdir()
    load = "job.pipeline:load_data"
    process = disturbed("SIGTERM", load, 1, "seed=5", "--output", str(tmp_path))
    process.communicate()
    assert process.returncode == 75
    assert len(list((tmp_path / "work" / "runs").iterdir())) == 2
    # What may change between attempts: where it goes, and how often it is saved.
    same = run_job(
        "train", *KEYS, "train.checkpoint={every: 2}", "output.keep=3", "--output", str(tmp_path)
    )
    assert same.returncode == 0, same.stderr
    assert re.fullmatch(rf"{tmp_path}/runs/{left.name}\n", same.stdout)
    assert manifest_of(tmp_path / "latest")["training"]["resumed"] == 1
