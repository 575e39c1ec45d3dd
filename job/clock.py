"""How long each stage took."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Seconds of each stage and in all, from `started` (seconds since the epoch) on."""

    def __init__(self, started: float) -> None:
        self.started = started
        self.stages: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.stages[name] = time.perf_counter() - begun

    def timing(self) -> dict[str, float]:
        """{"total": seconds until now, and one entry for each stage that has ended}."""
        return {"total": time.time() - self.started, **self.stages}
