"""Hostile job.yaml: an answer each time, soon, and without much memory."""

import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from job.config import load_config
from job.errors import ConfigError
from tests.conftest import ROOT, environment

from .campaign import SEED, share

SECONDS, KIB = 1.0, 100 * 1024

# How every fault begins: the file, or the whole where no line is at fault.
PLACES_OF_FAULTS = ("job.yaml:", "configuration:")

PIECES = (
    *(
        "\0",
        "\t",
        "\ufeff",
        "\r",
        "\u2028",
        "\x85",
        "\n---\n",
        "\n...\n",
        "!!python/object:os.x {}",
    ),
    *(
        "&a ",
        "*a",
        "<<: *a",
        "? ",
        "- ",
        ": ",
        "{",
        "}",
        "[",
        "]",
        "'",
        '"',
        "|",
        ">",
        "%YAML 1.1\n",
    ),
    *("9" * 400, "-1", "1e999", ".nan", ".inf", "0x1F", "010", "1:30", "2026-13-45", "2026-02-30"),
    # A low surrogate is written as the byte that it ends with, which is no UTF-8.
    *("\udcff", "\udcc3", "#", "\n", " ", "%"),
    *("on", "~", "=", "!!binary x", "!!int a", "!!set {a}", "seed: 1\n", "[" * 30, "{a: " * 30),
)


def mutated(text: str, random: random.Random) -> str:
    """`text` with one to eight pieces cut, doubled, moved, or put in."""
    for _ in range(random.randint(1, 8)):
        at, length = random.randrange(len(text) + 1), random.randint(0, 30)
        piece = text[at : at + length]
        match random.randrange(5):
            case 0:
                text = text[:at] + text[at + length :]
            case 1:
                text = text[:at] + piece + text[at:]
            case 2:
                to = random.randrange(len(text) + 1)
                text = text[:to] + piece + text[to:]
            case 3:
                text = text[:at] + random.choice(PIECES) + text[at:]
            case _:
                text = text[:at] + chr(random.choice((random.randrange(0xD800), 0x7F))) + text[at:]
    return text


def peak_kib() -> int:
    """The most memory that this process has had; unlike ru_maxrss, nothing of its parent's."""
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)[0])


def answer_all(count: int, folder: Path) -> dict[str, Any]:
    """What came of so many documents, mutated one after the other."""
    path = folder / "job.yaml"
    source = (ROOT / "job.yaml").read_text()
    mutator = random.Random(SEED)
    load_config(str(ROOT / "job.yaml"), [], {})
    before = peak_kib()
    found: dict[str, Any] = {"refused": 0, "longest": 0.0, "unplaced": [], "loud": []}
    for _ in range(count):
        text = mutated(source, mutator)
        path.write_bytes(text.encode(errors="surrogateescape"))
        begin = time.process_time()
        try:
            load_config(str(path), [], {})
        except ConfigError as error:
            found["refused"] += 1
            for fault in error.faults:
                found["loud"] += [] if fault.isprintable() else [text]
                found["unplaced"] += [] if fault.startswith(PLACES_OF_FAULTS) else [fault]
        except Exception as error:
            raise AssertionError(f"{type(error).__name__}: {error} for {text!r}") from error
        found["longest"] = max(found["longest"], time.process_time() - begin)
    return found | {"grown": peak_kib() - before}


# In a process of its own: this one may have had more memory before than any document takes.
APART = """
import json, sys
from pathlib import Path
from tests.faults.test_hostile_config import answer_all
print(json.dumps(answer_all(int(sys.argv[1]), Path(sys.argv[2]))))
"""


def assert_all_get_an_answer(count: int, folder: Path) -> None:
    command = [sys.executable, "-c", APART, str(count), str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    print(
        f"{count} documents, {found['refused']} refused, longest {found['longest']:.3f} s, "
        f"{found['grown'] / 1024:.0f} MiB"
    )
    assert (found["loud"], found["unplaced"]) == ([], [])
    assert count / 2 < found["refused"] < count  # some change a comment only
    assert found["longest"] < SECONDS
    assert found["grown"] < KIB


def test_two_thousand_mutated_documents_get_an_answer(tmp_path: Path) -> None:
    assert_all_get_an_answer(2000, tmp_path)


@pytest.mark.slow
def test_a_hundred_thousand_mutated_documents_get_an_answer(tmp_path: Path) -> None:
    assert_all_get_an_answer(share(100_000), tmp_path)


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)

# What takes long or much memory to read in other programs, or would be waited for.
CORPUS = {
    "bomb": BOMB.encode(),
    "merge": b"a: &a {x: 1}\n" + b"b: {<<: [" + b"*a," * 9999 + b"]}",
    "depth": b"a: " + b"[" * 60_000,
    "flow": b"{a: " * 15_000,
    "blocks": b"".join(b" " * n + b"a:\n" for n in range(350)),
    "huge": b"seed: " + b"9" * 60_000,
    "large": b"#" * (64 * 1024 + 1),
    "many": b"".join(b"k%d: 1\n" % n for n in range(6000)),
}

PLACES: dict[str, Callable[[Path], None]] = {
    "/dev/zero": lambda path: path.symlink_to("/dev/zero"),
    "FIFO": lambda path: os.mkfifo(path),
}

# In a small process between, because a process starts with its parent's peak of memory. On the
# processor's clock: what else the machine does is no matter.
MEASURED = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(code, used.ru_utime + used.ru_stime, used.ru_maxrss)
"""


@pytest.mark.parametrize("name", [*CORPUS, *PLACES])
def test_the_command_answers_soon_and_small(name: str, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    if name in CORPUS:
        path.write_bytes(CORPUS[name])
    else:
        PLACES[name](path)
    command = [sys.executable, "-m", "job", "check", "--config", str(path)]
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *command],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    code, seconds, kib = done.stdout.split()
    assert int(code) == (78 if name in CORPUS else 66), done.stderr
    assert "Traceback" not in done.stderr
    assert all(c.isprintable() or c == "\n" for c in done.stderr)
    assert float(seconds) < SECONDS
    assert int(kib) < KIB
