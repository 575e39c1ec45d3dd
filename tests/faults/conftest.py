import re
import shutil
from pathlib import Path

import pytest

from .campaign import CALLS, finish, traced


@pytest.fixture(scope="session")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trace") / "trace"


@pytest.fixture(scope="session")
def whole(trace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run that nothing disturbs; where there is strace, it writes down what it does."""
    before = traced(trace) if shutil.which("strace") else ()
    return finish(tmp_path_factory.mktemp("undisturbed"), "one", *before)


@pytest.fixture(scope="session")
def operations(whole: Path, trace: Path) -> list[tuple[str, int]]:
    """Each (call, nth of its kind) that the main thread of an undisturbed run makes."""
    counts = dict.fromkeys(CALLS, 0)
    for call in re.findall(r"^(\w+)\(", trace.read_text(), re.MULTILINE):
        counts[call] += 1
    print(counts)
    assert min(counts["fsync"], counts["rename"], counts["write"]) > 0
    return [(call, nth + 1) for call in CALLS for nth in range(counts[call])]
