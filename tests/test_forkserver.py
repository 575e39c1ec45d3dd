"""Workers: fresh, told apart by how they end, and gone when nobody wants them any more."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from job import interrupt
from job.errors import ConfigError, ExportMismatch, Interrupted, JobError, OutOfMemory
from job.forkserver import ForkServer

from .conftest import ROOT, wait_until_gone

PROBE = "tests.test_forkserver:Probe"
inherited = "no"


class Probe:
    """Lives in a worker."""

    def __init__(self, note: str = "") -> None:
        self.note = note
        self.calls = 0

    def tell(self, path: str) -> None:
        """Writes its process, how often it was asked, and what it knows of the test's process."""
        self.calls += 1
        Path(path).write_text(f"{os.getpid()} {self.calls} {inherited} {self.note}")

    def tell_threads(self, path: str) -> None:
        """The fork server's threads, and the limits that a worker's libraries see."""
        count = len(os.listdir(f"/proc/{os.getppid()}/task"))
        Path(path).write_text(f"{count} {os.environ['OMP_NUM_THREADS']}")

    def refuse(self) -> None:
        raise ExportMismatch("they differ")

    def misconfigure(self) -> None:
        raise ConfigError("one", "two")

    def fail(self) -> None:
        raise ZeroDivisionError("odd")

    def die(self, status: int) -> None:
        os._exit(status)

    def kill(self, number: int) -> None:
        os.kill(os.getpid(), number)

    def sleep(self, path: str) -> None:
        Path(path).write_text(f"{os.getpid()}")
        time.sleep(600)


class Doomed:
    """Killed before it is any good."""

    def __init__(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    """Started where this module says what a new process does not know."""
    global inherited
    inherited = "yes"
    with ForkServer() as server:
        yield server
    inherited = "no"


def wait_for(path: Path) -> int:
    """The number of the process that says so in this file."""
    while not path.exists() or not path.read_text():
        time.sleep(0.01)
    return int(path.read_text())


def test_a_worker_keeps_its_object_and_another_is_another_process(
    server: ForkServer, tmp_path: Path
) -> None:
    told = []
    one, other = server.worker(PROBE, "one"), server.worker(PROBE, "other")
    for worker in (one, one, other):
        worker.call("tell", str(tmp_path / "note"))
        worker.wait()
        told.append((tmp_path / "note").read_text().split())
    assert [t[1:] for t in told] == [["1", "no", "one"], ["2", "no", "one"], ["1", "no", "other"]]
    assert told[0][0] == told[1][0] != told[2][0]
    assert str(os.getpid()) not in {t[0] for t in told}


def test_a_server_of_one_thread_forks_with_no_other(server: ForkServer, tmp_path: Path) -> None:
    """A thread that holds a lock while the process is forked would hold it for ever."""
    worker = server.worker(PROBE)
    worker.call("tell_threads", str(tmp_path / "note"))
    worker.wait()
    assert (tmp_path / "note").read_text() == "1 1"


def test_what_a_call_raises_is_raised_here_as_what_it_is(
    server: ForkServer, capfd: pytest.CaptureFixture[str]
) -> None:
    worker = server.worker(PROBE)
    worker.call("refuse")
    with pytest.raises(ExportMismatch, match=r"^they differ$"):
        worker.wait()
    worker = server.worker(PROBE)
    worker.call("misconfigure")
    with pytest.raises(ConfigError, match="one\ntwo"):
        worker.wait()
    assert capfd.readouterr() == ("", "")


def test_a_defect_has_its_traceback_on_stderr(
    server: ForkServer, capfd: pytest.CaptureFixture[str]
) -> None:
    worker = server.worker(PROBE)
    worker.call("fail")
    with pytest.raises(JobError, match="ZeroDivisionError: odd") as caught:
        worker.wait()
    assert caught.value.code == 70
    assert 'raise ZeroDivisionError("odd")' in capfd.readouterr().err


@pytest.mark.parametrize("status", [0, 1, 81])
def test_a_worker_that_ends_without_an_answer_is_a_defect(server: ForkServer, status: int) -> None:
    """Whatever its status: a library may have called exit."""
    worker = server.worker(PROBE)
    worker.call("die", status)
    with pytest.raises(JobError, match=f"ended with {status}") as caught:
        worker.wait()
    assert caught.value.code == 70


def test_a_worker_that_is_killed_lacked_memory_and_one_that_crashed_did_not(
    server: ForkServer,
) -> None:
    for number, kind in ((signal.SIGKILL, OutOfMemory), (signal.SIGSEGV, JobError)):
        worker = server.worker(PROBE)
        worker.call("kill", number)
        with pytest.raises(JobError) as caught:
            worker.wait()
        assert type(caught.value) is kind


def test_a_signal_to_all_processes_is_an_interruption(
    server: ForkServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `docker stop` does not send one, but a service manager does."""
    monkeypatch.setattr(interrupt, "_noted", [])
    worker = server.worker(PROBE)
    worker.call("kill", signal.SIGTERM)
    interrupt.note()
    with pytest.raises(Interrupted):
        worker._look(60)


def test_so_is_one_that_was_killed_before_it_read_its_call(server: ForkServer) -> None:
    worker = server.worker("tests.test_forkserver:Doomed")
    worker.call("tell", "")
    with pytest.raises(OutOfMemory):
        worker.wait()


def test_poll_tells_the_end_of_a_call_without_waiting(tmp_path: Path) -> None:
    with ForkServer() as server:
        worker = server.worker(PROBE)
        worker.call("tell", str(tmp_path / "note"))
        assert not worker.poll()  # the server itself takes longer to start
        while not worker.poll():
            pass
        assert (tmp_path / "note").exists()


def test_without_its_server_a_worker_is_lost(tmp_path: Path) -> None:
    with ForkServer() as server:
        worker = server.worker(PROBE)
        worker.call("sleep", str(tmp_path / "note"))
        wait_for(tmp_path / "note")
        server._process.kill()
        with pytest.raises(OutOfMemory, match="the fork server was killed"):
            worker.wait()
        with pytest.raises(OutOfMemory, match="the fork server was killed"):
            server.worker(PROBE)


def test_a_worker_that_is_closed_ends_in_the_midst_of_its_work(
    server: ForkServer, tmp_path: Path
) -> None:
    worker = server.worker(PROBE)
    worker.call("sleep", str(tmp_path / "note"))
    process = wait_for(tmp_path / "note")
    worker.close()
    wait_until_gone(process)


def test_an_error_here_ends_them_all(tmp_path: Path) -> None:
    with pytest.raises(KeyError), ForkServer() as server, server:  # twice is once
        worker = server.worker(PROBE)
        worker.call("sleep", str(tmp_path / "note"))
        process = wait_for(tmp_path / "note")
        raise KeyError
    wait_until_gone(process)
    wait_until_gone(server._process.pid)


def test_a_process_that_is_killed_takes_them_along(tmp_path: Path) -> None:
    code = (
        "import sys; from job.forkserver import ForkServer; server = ForkServer()\n"
        f"worker = server.worker('{PROBE}'); worker.call('sleep', sys.argv[1]); worker.wait()"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "note")], cwd=ROOT)
    worker = wait_for(tmp_path / "note")
    server = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
    parent.kill()
    parent.wait()
    wait_until_gone(worker)
    wait_until_gone(server)


def test_a_signal_ends_the_waiting(
    server: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = server.worker(PROBE)
    worker.call("sleep", str(tmp_path / "note"))
    wait_for(tmp_path / "note")
    monkeypatch.setattr(interrupt, "_noted", [signal.SIGTERM])
    with pytest.raises(Interrupted):
        worker.wait()
    worker.close()
