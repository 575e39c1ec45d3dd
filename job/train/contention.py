"""Threads that wait for a CPU which other processes use: every step waits for the last of them."""

import time
from pathlib import Path

from job.log import WARNING, event

SECONDS = 10.0  # an answer is about so many at least
SHARE = 0.1


class Contention:
    """How long this process's threads were ready to run and had no CPU, and a warning of it.

    The number of threads decides the model's bytes, so it cannot follow the load by itself.
    """

    def __init__(self, threads: int, seconds: float = SECONDS) -> None:
        self.threads, self.seconds = threads, seconds
        self.since, self.waited = time.monotonic(), _waited()
        self.said = False

    def look(self) -> None:
        """To be called now and then; warns once, where one of them waited for a tenth of the time
        since it last looked."""
        seconds = time.monotonic() - self.since
        if self.threads == 1 or self.said or seconds < self.seconds:
            return
        waited = _waited()
        longest = max((s - self.waited.get(thread, 0.0) for thread, s in waited.items()), default=0)
        share = longest / seconds
        if share > SHARE:
            event(
                "busy",
                f"one of the {self.threads} threads waited {share:.2f} s of each second for a CPU "
                f"that others use, and every step waits for the last: threads: 1 may be faster",
                level=WARNING,
                threads=self.threads,
                waited=share,
            )
            self.said = True
        self.since, self.waited = time.monotonic(), waited


def _waited() -> dict[str, float]:
    """Seconds, by thread; none where Linux does not count them."""
    waited = {}
    for thread in Path("/proc/self/task").iterdir():
        try:
            waited[thread.name] = int((thread / "schedstat").read_text().split()[1]) / 1e9
        except (OSError, IndexError):  # it has ended, or there is no such file
            continue
    return waited
