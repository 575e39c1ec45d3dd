"""`python -m tests.wrapped ACTION MOMENT NTH ARGUMENTS...`: the real command, disturbed once.

MOMENT is `module:function`, `module:Class.method` or `import:module`. When it is reached for the
NTH time, ACTION is done to the process: the name of a signal, which it sends to itself, or `hold`,
which says so on stderr and then waits in a library call that no first signal ends. There is no hook
for it in the job.
"""

import functools
import importlib
import importlib.abc
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

STARTED = time.time()


def main(action: str, moment: str, nth: str, *arguments: str) -> int:
    from job import interrupt
    from job.cli import last_words, main

    interrupt.install(last_words)
    module, _, name = moment.partition(":")
    disturb = counted(int(nth), lambda: act(action))
    if module == "import":
        sys.meta_path.insert(0, Finder(name, disturb))
    else:
        wrap(module, name, disturb)
    return main(arguments, started=STARTED)


def counted(nth: int, disturb: Callable[[], None]) -> Callable[[], None]:
    calls = 0

    def count() -> None:
        nonlocal calls
        calls += 1
        if calls == nth:
            disturb()

    return count


def act(action: str) -> None:
    if action == "hold":
        print("held", file=sys.stderr, flush=True)
        time.sleep(600)
    else:
        os.kill(os.getpid(), getattr(signal, action))


def wrap(module: str, name: str, disturb: Callable[[], None]) -> None:
    *path, name = name.split(".")
    there = functools.reduce(getattr, path, importlib.import_module(module))
    real = getattr(there, name)

    def wrapped(*arguments: Any, **keywords: Any) -> Any:
        disturb()
        return real(*arguments, **keywords)

    setattr(there, name, wrapped)


class Finder(importlib.abc.MetaPathFinder):
    """Finds nothing; sees when `name` is about to be imported."""

    def __init__(self, name: str, disturb: Callable[[], None]) -> None:
        self.name, self.disturb = name, disturb

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: Any = None) -> None:
        if fullname == self.name:
            self.disturb()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
