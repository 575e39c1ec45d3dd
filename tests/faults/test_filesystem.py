"""Every operation on the file system, by strace: killed there, or answered with ENOSPC or EIO."""

import os
import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from .campaign import SEED, assert_same, assert_sound, finish, share, traced, train

pytestmark = pytest.mark.skipif(
    shutil.which("strace") is None and "CI" not in os.environ,
    reason="needs strace (apt-get install strace)",
)


def kill_at(output: Path, trace: Path, call: str, nth: int) -> bool:
    """Whether the run died there; an attempt that resumes may not come as far."""
    process = train(output, "one", *traced(trace, f"{call}:signal=SIGKILL:when={nth}"))
    said = process.communicate()[1]
    assert_sound(output)
    if process.returncode == 0:
        return False
    assert process.returncode == -9, (call, nth, said)
    *_, last, killed = trace.read_text().splitlines()
    assert last.startswith(f"{call}("), (call, nth, last)
    assert killed == "+++ killed by SIGKILL +++"
    return True


def fail_at(output: Path, trace: Path, call: str, nth: int, error: str) -> int:
    """The exit code of the run of which one operation fails."""
    process = train(output, "one", *traced(trace, f"{call}:error={error}:when={nth}"))
    said = process.communicate()[1]
    assert "(INJECTED)" in trace.read_text(), (call, nth)
    assert_sound(output)
    # What the job can do without may fail: then it is published all the same.
    assert process.returncode in (0, 74), (call, nth, error, process.returncode, said)
    assert "Traceback" not in said
    return process.returncode


def killed(folder: Path, whole: Path, call: str, nth: int) -> None:
    assert kill_at(folder / "out", folder.with_suffix(".trace"), call, nth), (call, nth)
    assert_same(finish(folder / "out"), whole)


def failed(folder: Path, whole: Path, call: str, nth: int, error: str) -> None:
    fail_at(folder / "out", folder.with_suffix(".trace"), call, nth, error)
    assert_same(finish(folder / "out"), whole)


def test_killed_and_failed_at_an_operation_a_rerun_ends_with_the_same_bytes(
    operations: list[tuple[str, int]], whole: Path, tmp_path: Path
) -> None:
    early = [one for one in operations if one[0] == "rename" and one[1] < 6]
    assert kill_at(tmp_path / "out", tmp_path / "kill", *random.Random(SEED).choice(early))
    assert fail_at(tmp_path / "out", tmp_path / "fail", "fsync", 3, "ENOSPC") == 74
    assert_same(finish(tmp_path / "out"), whole)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["SIGKILL", "ENOSPC", "EIO"])
def test_whatever_operation_it_strikes(
    fault: str, operations: list[tuple[str, int]], whole: Path, tmp_path: Path
) -> None:
    chosen = random.Random(f"{SEED}{fault}").sample(operations, share(len(operations)))
    with ThreadPoolExecutor(2) as pool:
        runs = [
            pool.submit(killed, tmp_path / f"{call}{nth}", whole, call, nth)
            if fault == "SIGKILL"
            else pool.submit(failed, tmp_path / f"{call}{nth}", whole, call, nth, fault)
            for call, nth in chosen
        ]
    faults = [str(run.exception()) for run in runs if run.exception() is not None]
    print(f"{fault}: {len(chosen)} of {len(operations)} operations")
    assert not faults, "\n\n".join(faults)
