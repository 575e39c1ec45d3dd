"""What README promises is seen to happen: its transcript, its table, its snippet."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from job.errors import ExitCode

from .conftest import ROOT, Job, manifest_of, run_on_a_terminal

README = (ROOT / "README.md").read_text()
COLOUR = re.compile(r"\x1b\[\d*m")


@pytest.fixture(scope="module")
def default_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """`make train` as a newcomer runs it, but for the output folder."""
    output = tmp_path_factory.mktemp("default") / "artifacts"
    code, seen = run_on_a_terminal(["make", "train", f"ARGS=--output {output}"])
    assert code == 0, seen
    return output, seen.replace(str(output), "artifacts")


def masked(line: str) -> str:
    """The line without what differs from run to run and from machine to machine."""
    line = COLOUR.sub("", line)
    line = re.sub(r"\d{8}T\d{6}Z-[0-9a-f]{8}-[0-9a-f]{6}", "ID", line)
    line = re.sub(r" on \w+ \(.*?\), \d+ threads? \(.*\)$", " on DEVICE", line)
    return re.sub(r"\d[\d,.]*", "#", line)


def test_the_transcript_is_what_make_train_prints(default_run: tuple[Path, str]) -> None:
    block = re.search(r"```console\n\$ make train\n(.*?)```", README, re.DOTALL)
    assert block is not None
    promised = block[1].splitlines()
    stays = [line.rpartition("\r")[2] for line in default_run[1].strip("\n").split("\n")]
    # How far the training is by then depends on the machine.
    for lines in (stays, promised):
        lines.remove("the untrained model was exported and verified")
    assert [masked(line) for line in stays] == [masked(line) for line in promised]


def test_the_last_words_after_the_training_are_six_lines_at_most(
    default_run: tuple[Path, str],
) -> None:
    stays = [line.rpartition("\r")[2] for line in default_run[1].strip("\n").split("\n")]
    (last_epoch,) = (n for n, line in enumerate(stays) if line.startswith("epoch 5/5"))
    summary = stays[last_epoch + 1 :]
    assert 1 <= len(summary) <= 6
    for part in ("0 failed", "test mse", "total", "OK (0)", "is published and verified"):
        assert part in "\n".join(summary)
    assert max(map(len, summary)) <= 120


TYPO = [sys.executable, "-m", "job", "train", "train.epoch=1"]


def test_the_verdict_has_colour_on_a_terminal_alone() -> None:
    assert COLOUR.findall(run_on_a_terminal(TYPO)[1]) == ["\x1b[31m", "\x1b[0m"]
    piped = subprocess.run(
        [*TYPO, "--log-format", "text"], cwd=ROOT, capture_output=True, text=True
    )
    assert piped.returncode == 78
    assert "\x1b" not in piped.stderr


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_there_is_no_colour_where_none_is_wanted(environment: dict[str, str]) -> None:
    code, seen = run_on_a_terminal(TYPO, **environment)
    assert code == 78
    assert "did you mean epochs?" in seen
    assert "\x1b" not in seen


def test_an_empty_no_color_is_none() -> None:
    assert COLOUR.search(run_on_a_terminal(TYPO, NO_COLOR="")[1])


def test_success_is_green(default_run: tuple[Path, str]) -> None:
    assert "\x1b[32mOK (0): " in default_run[1]


def test_a_bar_shows_epoch_losses_rate_and_remaining_time(
    default_run: tuple[Path, str],
) -> None:
    shown = re.findall(
        r"\r +\d+%\|.*\| \S+/8\.00M \[\d\d:\d\d<\d\d:\d\d, +\S+ rows/s"
        r", epoch=3/5, loss=1\.\d+, validation=1\.\d+\]",
        default_run[1],
    )
    assert shown


def test_the_transcripts_result_is_the_runs(default_run: tuple[Path, str]) -> None:
    promised = re.search(r"test mse ([\d.]+)", README)
    assert promised is not None
    manifest = manifest_of(default_run[0] / "latest")
    mse = manifest["metrics"]["test"]["mse"]
    # The same seed on another processor differs by rounding, which training amplifies.
    assert mse == pytest.approx(float(promised[1]), abs=0.02)
    assert manifest["data"]["rows"] == 2_000_000
    assert manifest["signature"]["inputs"][0]["shape"] == ["batch", 10]


def test_the_published_default_model_verifies_again(
    default_run: tuple[Path, str], job: Job
) -> None:
    assert job("verify", str(default_run[0] / "latest")).returncode == 0


def test_the_snippet_loads_the_model(default_run: tuple[Path, str]) -> None:
    block = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert block is not None
    code = block[1] + "\nprint(answers.shape)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=default_run[0].parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.fullmatch(r"\(\d+, 1\)\n", done.stdout)


def test_the_table_of_exit_codes_is_the_codes() -> None:
    rows = re.findall(r"^\| (\d+) \| (\w+) \|", README, re.MULTILINE)
    assert [(int(code), name) for code, name in rows] == [(int(c), c.name) for c in ExitCode]
