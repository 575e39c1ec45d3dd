"""Every operation on the file system, by strace: killed there, or answered with ENOSPC or EIO."""

import os
import random
import re
import shutil
from collections.abc import Callable
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


def strike_helper(output: Path, trace: Path, call: str, nth: int, fault: str) -> int:
    """The exit code of the run of which a helper process meets a fault."""
    what = "signal=SIGKILL" if fault == "SIGKILL" else f"error={fault}"
    helpers = (*traced(trace, f"{call}:{what}:when={nth}"), "-f")
    process = train(output, helpers=helpers)
    said = process.communicate()[1]
    struck = "killed by SIGKILL" if fault == "SIGKILL" else "(INJECTED)"
    assert struck in trace.read_text(), (call, nth)
    assert_sound(output)
    # A helper that is killed takes the run with it, as one does that finds no memory.
    codes = (71,) if fault == "SIGKILL" else (0, 74)
    assert process.returncode in codes, (call, nth, fault, process.returncode, said)
    assert "Traceback" not in said
    return process.returncode


def test_killed_and_failed_at_an_operation_a_rerun_ends_with_the_same_bytes(
    operations: list[tuple[str, int]], whole: Path, tmp_path: Path
) -> None:
    early = [one for one in operations if one[0] == "rename" and one[1] < 6]
    assert kill_at(tmp_path / "out", tmp_path / "kill", *random.Random(SEED).choice(early))
    assert fail_at(tmp_path / "out", tmp_path / "fail", "fsync", 3, "ENOSPC") == 74
    assert_same(finish(tmp_path / "out"), whole)


def test_a_log_that_cannot_be_written_costs_the_line_alone(
    whole: Path, trace: Path, tmp_path: Path
) -> None:
    writes = re.findall(r"^write\((\d+),", trace.read_text(), re.MULTILINE)
    first = writes.index("2") + 1
    assert fail_at(tmp_path / "out", tmp_path / "fail", "write", first, "ENOSPC") == 0
    assert_same(tmp_path / "out" / "runs" / "one", whole)


def test_so_it_does_where_a_helper_process_meets_the_fault(
    operations_of_helpers: list[tuple[str, int]], whole: Path, tmp_path: Path
) -> None:
    writes = [one for one in operations_of_helpers if one[0] == "write"]
    half = len(writes) // 2
    assert strike_helper(tmp_path / "out", tmp_path / "kill", *writes[half], "SIGKILL") == 71
    assert strike_helper(tmp_path / "out", tmp_path / "fail", *writes[half + 1], "ENOSPC") == 74
    assert_same(finish(tmp_path / "out"), whole)


def campaign(
    kind: str, strike: Callable[[str, int], None], operations: list[tuple[str, int]]
) -> None:
    """`strike` at every operation, two at a time."""
    chosen = random.Random(f"{SEED}{kind}").sample(operations, share(len(operations)))
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(strike, call, nth) for call, nth in chosen]
    faults = [str(run.exception()) for run in runs if run.exception() is not None]
    print(f"{kind}: {len(chosen)} of {len(operations)} operations")
    assert not faults, "\n\n".join(faults)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["SIGKILL", "ENOSPC", "EIO"])
def test_whatever_operation_it_strikes(
    fault: str, operations: list[tuple[str, int]], whole: Path, tmp_path: Path
) -> None:
    def strike(call: str, nth: int) -> None:
        folder = tmp_path / f"{call}{nth}"
        folder.mkdir()
        if fault == "SIGKILL":
            assert kill_at(folder / "out", folder / "trace", call, nth), (call, nth)
        else:
            fail_at(folder / "out", folder / "trace", call, nth, fault)
        assert_same(finish(folder / "out"), whole)

    campaign(fault, strike, operations)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["SIGKILL", "ENOSPC", "EIO"])
def test_whatever_operation_of_a_helper_process_it_strikes(
    fault: str, operations_of_helpers: list[tuple[str, int]], whole: Path, tmp_path: Path
) -> None:
    def strike(call: str, nth: int) -> None:
        folder = tmp_path / f"{call}{nth}"
        folder.mkdir()
        strike_helper(folder / "out", folder / "trace", call, nth, fault)
        assert_same(finish(folder / "out"), whole)

    campaign(f"{fault} in a helper", strike, operations_of_helpers)
