"""Several threads and too few CPUs: the job says so, and does not make it worse itself."""

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from job.train.contention import Contention

from .conftest import SMALL, run_job

SECONDS = 0.5


@contextmanager
def two_threads_on_one_cpu() -> Iterator[None]:
    """Both of this process, which compute all the time."""
    stop, (cpu, *_) = threading.Event(), os.sched_getaffinity(0)
    large = torch.ones(256, 256)

    def compute() -> None:
        os.sched_setaffinity(threading.get_native_id(), {cpu})
        while not stop.is_set():
            large.mm(large)

    threads = [threading.Thread(target=compute) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_threads_that_wait_for_a_cpu_are_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    contention = Contention(2, SECONDS)
    with two_threads_on_one_cpu():
        contention.look()
        assert not caplog.records  # too soon
        for _ in range(2):
            time.sleep(2 * SECONDS)
            contention.look()
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "one of the 2 threads waited " in record.message
    assert record.message.endswith("threads: 1 may be faster")


def test_one_thread_has_none_to_wait_for(caplog: pytest.LogCaptureFixture) -> None:
    contention = Contention(1, SECONDS)
    with two_threads_on_one_cpu():
        time.sleep(2 * SECONDS)
        contention.look()
    assert not caplog.records


def test_threads_that_have_nothing_to_do_do_not_wait(caplog: pytest.LogCaptureFixture) -> None:
    contention = Contention(2, SECONDS)
    for _ in range(2):
        time.sleep(2 * SECONDS)
        contention.look()
    assert not caplog.records


def test_with_several_threads_the_training_begins_after_the_preflight(tmp_path: Path) -> None:
    """Which would take a CPU from one of them."""
    done = run_job("train", *SMALL, "threads=2", f"output.dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    said = [json.loads(line)["event"] for line in done.stderr.splitlines()]
    assert said.index("preflight") < said.index("epoch")
