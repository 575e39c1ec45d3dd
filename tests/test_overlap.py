"""Several runs at once on one output folder: published folders are whole, whatever locks do."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from job.manifest import read_manifest

from .conftest import ROOT, SMALL, environment, run_job

PROCESSES, ROUNDS = 8, 12

# Publishes a folder of 20 files under each id in turn, or finds it published.
PUBLISHER = """
import os, sys, time
from datetime import UTC, datetime
from pathlib import Path
from job.errors import JobError
from job.manifest import Identity, sha256_of
from job.publish import claim, prepare_output, publish, sweep
output, own, rounds = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
while not (output.parent / "go").exists():
    time.sleep(0.001)
for number in range(rounds):
    run_id = f"run{number}{own}"
    try:
        prepare_output(output)
        sweep(output)
        with claim(output, run_id, lambda _: Identity("f" * 64, "", 1), "new") as run:
            if run.published.exists():
                print(run_id, "found")
                continue
            for name in range(20):
                (run.staging / f"{name}.txt").write_text(str(os.getpid()) * 1000)
            now = datetime.now(UTC).isoformat()
            fields = {"contract": 1, "run_id": run_id, "fingerprint": "f" * 64, "created": now}
            names = [f"{name}.txt" for name in range(20)]
            publish(run, fields, {name: sha256_of(run.staging / name) for name in names}, 1000)
            print(run_id, "published")
    except (JobError, OSError, KeyError) as error:
        print(run_id, "failed", type(error).__name__, error)
"""

# A file system that grants every lock.
NO_LOCKS = "import fcntl; fcntl.flock = lambda descriptor, operation: None"


def publish_together(
    folder: Path, *, own_ids: bool = False, locks: bool = True
) -> list[tuple[str, str]]:
    """What each of the processes says of each id."""
    (folder / "boot").mkdir()
    if not locks:
        (folder / "boot" / "sitecustomize.py").write_text(NO_LOCKS)
    env = environment(PYTHONPATH=os.pathsep.join([str(folder / "boot"), str(ROOT)]))
    (folder / "out").mkdir()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PUBLISHER, str(folder / "out"), own, str(ROUNDS)],
            env=env,
            stdout=subprocess.PIPE,
            text=True,
        )
        for own in (f"-{i}" if own_ids else "" for i in range(PROCESSES))
    ]
    (folder / "go").touch()
    said = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * PROCESSES
    words = [line.split() for text in said for line in text.splitlines()]
    return [(run_id, how) for run_id, how, *_ in words]


def assert_whole(run: Path) -> None:
    """Every file is there, has its hash, and was written by one process."""
    assert len(read_manifest(run)["files"]) == 20
    assert len({path.read_text() for path in run.glob("*.txt")}) == 1


def test_with_one_id_one_publishes_and_the_others_find_it(tmp_path: Path) -> None:
    said = Counter(publish_together(tmp_path))
    for number in range(ROUNDS):
        run_id = f"run{number}"
        assert said[run_id, "published"] == 1
        assert said[run_id, "found"] == PROCESSES - 1
        assert_whole(tmp_path / "out" / "runs" / run_id)
    assert not list((tmp_path / "out" / "work" / "runs").iterdir())
    assert not list((tmp_path / "out" / "work" / "locks").iterdir())


def test_with_different_ids_all_publish(tmp_path: Path) -> None:
    said = publish_together(tmp_path, own_ids=True)
    assert {how for _, how in said} == {"published"}
    runs = list((tmp_path / "out" / "runs").iterdir())
    assert len(runs) == PROCESSES * ROUNDS
    for run in runs:
        assert_whole(run)
    newest = max(runs, key=lambda run: str(read_manifest(run)["created"]))
    assert (tmp_path / "out" / "latest").resolve() == newest.resolve()


def test_where_locks_do_not_lock_published_folders_are_whole_all_the_same(tmp_path: Path) -> None:
    said = Counter(publish_together(tmp_path, locks=False))
    for number in range(ROUNDS):
        assert said[f"run{number}", "published"] <= 1
    runs = list((tmp_path / "out" / "runs").iterdir())
    assert len(runs) > ROUNDS // 2
    for run in runs:
        assert_whole(run)
    assert (tmp_path / "out" / "latest").is_dir()
    assert sum(n for (_, how), n in said.items() if how == "failed") > 0  # they did collide


@pytest.mark.parametrize("locks", [True, False])
def test_the_real_command_twice_at_once_under_one_id(locks: bool, tmp_path: Path) -> None:
    if not locks:
        (tmp_path / "sitecustomize.py").write_text(NO_LOCKS)
    env = environment(PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]))
    output = tmp_path / "out"
    command = [sys.executable, "-m", "job", "train", *SMALL, "--run-id", "one"]
    processes = [
        subprocess.Popen(
            [*command, "--output", str(output)],
            cwd=ROOT,
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    said = [process.communicate()[1] for process in processes]
    codes = sorted(process.returncode for process in processes)
    assert set(codes) <= {0, 74}, said
    assert codes[0] == 0
    if locks:
        assert sum("published_before" in text for text in said) == codes.count(0) - 1
    assert [path.name for path in (output / "runs").iterdir()] == ["one"]
    assert run_job("verify", str(output / "latest")).returncode == 0
