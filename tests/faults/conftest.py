import re
import shutil
import time
from collections import Counter
from pathlib import Path

import pytest

from .campaign import CALLS, assert_same, finish, traced, train


@pytest.fixture(scope="session")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trace") / "trace"


@pytest.fixture(scope="session")
def undisturbed(trace: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """The tiny run that nothing disturbs, and its seconds; where there is strace, it writes down
    what it does, which takes longer."""
    before = traced(trace) if shutil.which("strace") else ()
    start = time.monotonic()
    folder = finish(tmp_path_factory.mktemp("undisturbed"), "one", *before)
    return folder, time.monotonic() - start


@pytest.fixture(scope="session")
def whole(undisturbed: tuple[Path, float]) -> Path:
    return undisturbed[0]


@pytest.fixture(scope="session")
def operations(whole: Path, trace: Path) -> list[tuple[str, int]]:
    """Each (call, nth of its kind) that the main thread of an undisturbed run makes."""
    counts = Counter(re.findall(r"^(\w+)\(", trace.read_text(), re.MULTILINE))
    print(counts)
    assert min(counts["fsync"], counts["rename"], counts["write"]) > 0
    return [(call, nth + 1) for call in CALLS for nth in range(counts[call])]


@pytest.fixture(scope="session")
def operations_of_helpers(
    whole: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[tuple[str, int]]:
    """Each (call, nth of its kind in one process) that a process makes which exports or verifies.

    Where several make so many, a fault strikes the first to come so far.
    """
    folder = tmp_path_factory.mktemp("helpers")
    process = train(folder / "out", helpers=(*traced(folder / "trace"), "-f"))
    said = process.communicate()[1]
    assert process.returncode == 0, said
    assert_same(folder / "out" / "runs" / "one", whole)
    found = Counter(re.findall(r"^(\d+) +(\w+)\(", (folder / "trace").read_text(), re.MULTILINE))
    most = {call: max((n for (_, c), n in found.items() if c == call), default=0) for call in CALLS}
    print(most)
    assert most["write"] > 50  # files of the model, twice
    return [(call, nth + 1) for call in CALLS for nth in range(most[call])]
