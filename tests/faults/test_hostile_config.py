"""Hostile job.yaml: an answer each time, soon, and without much memory."""

import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from job.config import load_config
from job.errors import ConfigError
from tests.conftest import ROOT

from .campaign import SEED, environment, share

SECONDS, KIB = 1.0, 100 * 1024

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


def answer_all(count: int, path: Path) -> None:
    source = (ROOT / "job.yaml").read_text()
    mutator = random.Random(SEED)
    load_config(str(ROOT / "job.yaml"), [], {})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused, longest = 0, 0.0
    loud: list[str] = []
    for _ in range(count):
        text = mutated(source, mutator)
        path.write_text(text, newline="")
        begin = time.process_time()
        try:
            load_config(str(path), [], {})
        except ConfigError as error:
            refused += 1
            loud += [text for fault in error.faults if not fault.isprintable()]
        except Exception as error:
            raise AssertionError(f"{type(error).__name__}: {error} for {text!r}") from error
        longest = max(longest, time.process_time() - begin)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"{count} documents, {refused} refused, longest {longest:.3f} s, {grown / 1024:.0f} MiB")
    assert not loud
    assert refused > count / 2
    assert longest < SECONDS
    assert grown < KIB


def test_two_thousand_mutated_documents_get_an_answer(tmp_path: Path) -> None:
    answer_all(2000, tmp_path / "job.yaml")


@pytest.mark.slow
def test_a_hundred_thousand_mutated_documents_get_an_answer(tmp_path: Path) -> None:
    answer_all(share(100_000), tmp_path / "job.yaml")


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)

CORPUS = {
    "bomb": BOMB.encode(),
    "merge": b"a: &a {x: 1}\n" + b"b: {<<: [" + b"*a," * 9999 + b"]}",
    "depth": b"a: " + b"[" * 60_000,
    "flow": b"{a: " * 15_000,
    "blocks": b"".join(b" " * n + b"a:\n" for n in range(350)),
    "tag": b"seed: !!python/object/apply:os.system ['false']",
    "twice": b"seed: 1\nseed: 2",
    "nul": b"seed: 1\0",
    "utf16": "seed: 1".encode("utf-16"),
    "bom inside": "seed: \ufeff1".encode(),
    "huge": b"seed: " + b"9" * 60_000,
    "huge float": b"train: {optimizer: {lr: 1e99999}}",
    "date": b"seed: 2026-13-45",
    "large": b"#" * (64 * 1024 + 1),
    "empty": b"",
    "documents": b"seed: 1\n---\nseed: 2",
    "key": b"? [a, b]\n: 1",
    "anchor": b"&a seed: *a",
    "many": b"".join(b"k%d: 1\n" % n for n in range(6000)),
}

# In a small process between, because a process starts with its parent's peak of memory. On the
# processor's clock: what else the machine does is no matter.
MEASURED = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(code, used.ru_utime + used.ru_stime, used.ru_maxrss)
"""

PLACES: dict[str, Callable[[Path], None]] = {
    "/dev/zero": lambda path: path.symlink_to("/dev/zero"),
    "FIFO": lambda path: os.mkfifo(path),
    "folder": lambda path: path.mkdir(),
    "loop": lambda path: path.symlink_to(path),
    "dangling": lambda path: path.symlink_to("nowhere"),
}


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
