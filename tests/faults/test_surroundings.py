"""Odd surroundings, and many runs in one folder."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

import job.cli

from .campaign import TINY, assert_sound, finish, share


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("faketime") is None, reason="needs faketime")
def test_a_clock_set_back_a_day_harms_nothing(tmp_path: Path) -> None:
    first = finish(tmp_path, "first")
    finish(tmp_path, "second", "faketime", "-f", "-1d")
    assert_sound(tmp_path)
    assert (tmp_path / "latest").resolve() == first  # a run from before is no newer one


BAD_IDS = (
    "..",
    "../x",
    "a/b",
    "/etc",
    "a\nb",
    "a\n",
    "a" * 300,
    ".hidden",
    "-x",
    "a\x1bb",
    "é",
    "",
)


@pytest.mark.parametrize("run_id", BAD_IDS)
def test_a_run_id_that_names_no_folder_everywhere_is_refused(
    run_id: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert job.cli.main(["train", f"--run-id={run_id}", "--output", str(tmp_path)]) == 64
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert all(c.isprintable() or c == "\n" for c in said)
    assert not list(tmp_path.iterdir())


def counts(output: Path) -> tuple[int, int, list[str]]:
    """Files of the output, open descriptors, and what lies in the folder for temporary files."""
    descriptors = len(os.listdir("/proc/self/fd"))
    return len(list(output.rglob("*"))), descriptors, sorted(os.listdir(tempfile.gettempdir()))


@pytest.mark.slow
def test_five_hundred_runs_in_one_folder_leave_no_more_than_ten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, temporary = tmp_path / "out", tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("TMPDIR", str(temporary))
    after = []
    for run in range(share(490) + 10):
        assert (
            job.cli.main(["train", "--quiet", *TINY, f"--output={output}", f"--run-id=r{run}"]) == 0
        )
        after.append(counts(output))
    print(f"{len(after)} runs: {after[-1]}")
    assert after[-1] == after[9]
