"""Threads that wait for a CPU which other processes use: every step waits for the last of them."""

import time
from pathlib import Path

from job.log import WARNING, event

SECONDS = 10.0  # an answer is about so many at least
SHARE = 0.25


class Contention:
    """How long this process's threads were ready to run and had no CPU, and a warning of it.

    The number of threads decides the model's bytes, so it cannot follow the load by itself.
    """

    def __init__(self, threads: int, seconds: float = SECONDS) -> None:
        self.threads, self.seconds = threads, seconds
        self.since, self.waited = time.monotonic(), _waited()
        self.said = False

    def look(self) -> None:
        """To be called now and then; warns once, where the threads waited for a quarter of the
        time since it last looked."""
        seconds = time.monotonic() - self.since
        if self.threads == 1 or self.said or seconds < self.seconds:
            return
        waited = _waited()
        share = (waited - self.waited) / seconds
        if share > SHARE:
            event(
                "busy",
                f"the {self.threads} threads waited {share:.2f} s of each second for a CPU that "
                f"others use, and every step waits for the last of them: threads: 1 may be faster",
                level=WARNING,
                threads=self.threads,
                waited=share,
            )
            self.said = True
        self.since, self.waited = time.monotonic(), waited


def _waited() -> float:
    """Seconds, the threads' added up; 0 where Linux does not count them."""
    waited = 0
    for thread in Path("/proc/self/task").iterdir():
        try:
            waited += int((thread / "schedstat").read_text().split()[1])
        except (OSError, IndexError):  # it has ended, or there is no such file
            continue
    return waited / 1e9
