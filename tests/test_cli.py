"""The command line: streams, exit codes, and the one boundary where errors become codes."""

import errno
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from job import __version__, cli, errors
from job.errors import ConfigError, ExitCode, JobError

from .conftest import ROOT, Job


def classes() -> list[type[JobError]]:
    found = [JobError]
    for kind in found:
        found += kind.__subclasses__()
    return found


def test_every_code_has_one_error_and_the_tree_in_the_docstring_is_true() -> None:
    drawn = dict(re.findall(r"^ +(\w+) +(\d\d) ", errors.__doc__ or "", re.MULTILINE))
    real = {kind.__name__: str(int(kind.code)) for kind in classes() if kind.__name__ != "Verdict"}
    assert drawn == real
    # One of its own; another may only be a special case of it.
    own = [
        k
        for k in classes()[1:]
        if k.__name__ != "Verdict" and k.code != getattr(k.__base__, "code", None)
    ]
    assert len({kind.code for kind in own}) == len(own) == len(ExitCode) - 2  # 0; 70, the root


def test_no_code_can_be_mistaken_for_a_crash() -> None:
    assert not {1, 2, *range(126, 256)} & {int(code) for code in ExitCode}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        *[(kind("why"), kind.code) for kind in classes()],
        (MemoryError(), 71),
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), 71),
        (OSError(errno.ENOSPC, "No space left on device"), 74),
        (OSError(errno.EIO, "Input/output error"), 74),
        (PermissionError(errno.EACCES, "Permission denied"), 77),
    ],
)
def test_the_boundary_gives_each_error_its_code(
    error: BaseException,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object) -> str:
        raise error

    monkeypatch.setattr(cli, "_check", fail)
    assert cli.main(["check", "--log-format", "text"]) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert f"({int(code)}): " in said.err.splitlines()[-1]
    assert "Traceback" not in said.err


def test_a_defect_is_70_with_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> str:
        raise ZeroDivisionError("by the way")

    monkeypatch.setattr(cli, "_check", fail)
    assert cli.main(["check", "--log-format", "text"]) == 70
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert said.splitlines()[-1] == "SOFTWARE (70): ZeroDivisionError: by the way"


def test_a_command_without_its_folder_is_64(job: Job) -> None:
    done = job("verify")
    assert (done.returncode, done.stdout) == (64, "")
    assert json.loads(done.stderr.splitlines()[-1])["code"] == 64


def test_help_and_version_go_to_stdout(job: Job) -> None:
    assert "train" in job("--help").stdout
    assert job("--version").stdout == f"job {__version__}\n"


def test_train_is_the_default_command(job: Job) -> None:
    for arguments, code in (([], 78), (["seed=x"], 78), (["--config", "nowhere.yaml"], 66)):
        done = job(*arguments, env={"JOB__DEVICE": "bogus"}, cwd=ROOT)
        assert done.returncode == code  # it read the configuration: that is train


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "foo"),
        ("check", "seed=1", "--log-format", "text", "foo"),
        ("--quiet", "verify", "DIR"),
        ("verify", "DIR", "seed=1"),
    ],
)
def test_what_is_neither_command_nor_override_is_a_fault_of_usage(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 64
    assert "unknown argument" in capsys.readouterr().err


def test_overrides_may_stand_anywhere_and_the_last_wins(job: Job) -> None:
    done = job("check", "seed=1", "--quiet", "seed=2", "--config", "job.yaml", "train.epochs=9")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("seed: 2\n")
    assert "epochs: 9" in done.stdout


def test_check_prints_the_resolved_configuration(job: Job) -> None:
    done = job("check", "train.epochs=3", env={"JOB__SEED": "7"})
    assert done.returncode == 0
    assert "epochs: 3" in done.stdout
    assert done.stdout.startswith("seed: 7\n")


def test_an_unknown_key_in_the_environment_is_a_fault_and_other_variables_are_none(
    job: Job,
) -> None:
    done = job("check", env={"JOB__TRAIN__EPOCH": "3", "JOB_SERVICE_HOST": "10.0.0.1"})
    assert done.returncode == 78
    assert "environment JOB__TRAIN__EPOCH: train.epoch: unknown key; did you mean" in done.stderr
    assert "SERVICE" not in done.stderr


def test_the_run_id_of_the_command_line_comes_before_that_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("JOB_RUN_ID", raising=False)
    assert cli._run_id(None) is None
    monkeypatch.setenv("JOB_RUN_ID", "theirs")
    assert (cli._run_id(None), cli._run_id("mine")) == ("theirs", "mine")
    monkeypatch.setenv("JOB_RUN_ID", "../theirs")
    with pytest.raises(ConfigError, match="environment JOB_RUN_ID"):
        cli._run_id(None)


def test_faults_are_listed_before_the_last_line(job: Job) -> None:
    done = job("check", "--log-format", "text", "seed=x", "bogus=1")
    lines = done.stderr.splitlines()
    assert len(lines) == 3
    assert lines[-1].startswith("CONFIG (78): 2 faults in the configuration, the first: ")


def test_json_lines_carry_time_level_event_and_fields(job: Job) -> None:
    done = job("check", "bogus=1")
    line = json.loads(done.stderr.splitlines()[-1])
    assert line["event"] == "end"
    assert line["code"] == 78
    assert line["level"] == "critical"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", line["time"])


@pytest.mark.parametrize("letter", ["x", "\N{CRAB}", "\x1b", "\udc80"])
def test_the_termination_log_tells_code_and_reason(
    letter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "termination-log"
    monkeypatch.setenv("JOB_TERMINATION_LOG", str(log))
    path = "nowhere" + 15 * ("/" + 50 * letter)
    assert cli.main(["verify", path]) == 66
    assert 600 < log.stat().st_size <= 4096
    entry = json.loads(log.read_text())
    assert (entry["code"], entry["name"]) == (66, "NO_INPUT")
    assert entry["reason"].startswith(path[:600])


@pytest.mark.parametrize(
    ("command", "code"),
    [(("--version",), 0), (("schema",), 0), (("check", "bogus=1"), 78), (("bogus",), 64)],
)
@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&- >&- 2>&-"])
def test_streams_may_be_closed(command: tuple[str, ...], code: int, closed: str) -> None:
    words = shlex.join([sys.executable, "-m", "job", *command])
    done = subprocess.run(["bash", "-c", f"{words} {closed}"], cwd=ROOT, check=False)
    assert done.returncode == code


def test_a_termination_log_that_cannot_be_written_changes_nothing(job: Job, tmp_path: Path) -> None:
    done = job("check", env={"JOB_TERMINATION_LOG": str(tmp_path)})
    assert done.returncode == 0


def test_a_reader_that_goes_away_changes_nothing() -> None:
    script = f"{sys.executable} -m job schema | exec 0<&-; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "0\n"
    assert done.stderr == ""


def test_what_a_library_prints_is_not_taken_for_the_result(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def chatty(*_: object) -> str:
        print("a library's greeting")
        return "the result"

    monkeypatch.setattr(cli, "_check", chatty)
    assert cli.main(["check"]) == 0
    assert capfd.readouterr() == ("the result\n", "a library's greeting\n")


def test_quiet_still_says_what_went_wrong(job: Job) -> None:
    done = job("check", "--quiet", "bogus=1")
    assert done.returncode == 78
    assert "unknown key" in done.stderr
