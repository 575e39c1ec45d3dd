"""SIGTERM and SIGINT: the first asks the job to save its state and stop, a second ends it at once.

No exception is thrown into running code. The first signal is only noted; the job looks where it can
stop with nothing half done. A thread counts the signals, because Python runs a handler only between
two of the main thread's instructions: a library call may take seconds, and a second signal must not
wait for it.
"""

import os
import signal
import threading
from collections.abc import Callable

from job.errors import Interrupted

_noted: list[int] = []  # by the main thread, which so never misses one that has come
_counted: list[int] = []  # by the watching thread
_patience = 1  # signals that are noted before one ends the process


def install(last_words: Callable[[int], None]) -> None:
    """Takes SIGTERM and SIGINT from now on. Process 1, as in a container, has no other default.

    `last_words` is called with the signal's number by the thread that then ends the process; it
    must take no lock.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: _noted.append(number))
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reading, last_words), daemon=True).start()


def _watch(reading: int, last_words: Callable[[int], None]) -> None:
    while True:
        for number in os.read(reading, 16):
            _counted.append(number)
            if len(_counted) > _patience:
                _end(number, last_words)


def _end(number: int, last_words: Callable[[int], None]) -> None:
    try:
        last_words(number)
    finally:
        os._exit(128 + number)


def at_once(last_words: Callable[[int], None]) -> None:
    """For commands that have no state to save: the first signal ends them, one before this too."""
    global _patience
    _patience = 0
    if requested():
        _end((_noted or _counted)[0], last_words)


def requested() -> bool:
    """Has a signal asked the job to stop?"""
    return bool(_noted or _counted)


def note() -> None:
    """Takes another process's word that a signal has come."""
    if not requested():
        _noted.append(signal.SIGTERM)


def check() -> None:
    """Called wherever the job can stop.

    Raises:
        Interrupted: a signal has asked for it.
    """
    if requested():
        name = signal.Signals((_noted or _counted)[0]).name
        raise Interrupted(f"stopped by {name}, its state is saved; run again and it resumes")
