"""Work in other processes, forked from an interpreter that has imported what takes long to import.

The server is a new interpreter, which inherits nothing of this one. While this process is busy it
imports libraries, and then forks a worker for each piece of work: that is there at once, and knows
libraries and nothing else. Server and workers end with this process, however it ends.

They talk through Unix sockets that keep messages apart; a message is one JSON object. A worker
makes one object and then calls its methods, one after the other.
"""

import contextlib
import importlib
import json
import os
import pkgutil
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import warnings
from pathlib import Path
from typing import Any, NoReturn

import job
from job import interrupt
from job.errors import ExitCode, JobError, OutOfMemory, error_of, known

# Imported before the first fork; each alone, so that one which fails fails where it is needed.
PRELOAD = (
    "job.export_worker",
    "job.verify.fresh",
    "onnxruntime",
    "onnxscript",
    "torch.export.pt2_archive",
)

_MESSAGE = 2**20  # bytes of the longest
_TEXT = 50_000  # characters of an error or a traceback that are told
_POLL = 0.1  # seconds between two looks at what a worker says, or at whether a signal has come


class ForkServer:
    """Starts at once, and is good for any number of workers; a context that ends them all."""

    def __init__(self, threads: int = 1) -> None:
        """`threads` is how many the libraries of a worker may compute with."""
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._said = open(os.memfd_create("stderr"), "w+b")  # noqa: SIM115  __exit__ closes it
        self._workers: list[Worker] = []
        root = str(Path(job.__file__).resolve().parent.parent)
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        limits = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
        with theirs:
            self._process = subprocess.Popen(
                # -P: what lies in the working directory is not imported.
                [sys.executable, "-P", "-m", "job.forkserver"],
                env={**os.environ, **limits, "PYTHONPATH": path},
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=self._said,
                start_new_session=True,  # a terminal's Ctrl-C is for this process
            )

    def worker(self, kind: str, *arguments: str) -> "Worker":
        """A new process with the object that `kind`, "module:Class", makes of these arguments.

        Raises:
            JobError: the server is gone.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                socket.send_fds(self._control, [_packed([kind, *arguments])], [theirs.fileno()])
            except ConnectionError:
                ours.close()
                raise self.lost() from None
        self._workers.append(Worker(self, ours, kind))
        return self._workers[-1]

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def lost(self) -> JobError:
        """What it means that the server has ended, which it may be about to."""
        status: int | str = "no status"
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = self._process.wait(timeout=1)
        self._said.seek(0)
        said = self._said.read().decode(errors="replace").strip().splitlines()
        return _ended("the fork server", status, " ".join(said[-1:]))

    def __enter__(self) -> "ForkServer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._said.closed:  # ended already: its number may be another process's by now
            return
        for worker in self._workers:
            worker.close()
        self._control.close()
        if kind is None and self._workers:  # they end by themselves, and the server after them
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._said.close()


class Worker:
    """A process that answers one call after the other."""

    def __init__(self, server: ForkServer, channel: socket.socket, name: str) -> None:
        self._server, self._channel, self._name = server, channel, name
        self._next_look = 0.0

    def call(self, method: str, *arguments: object) -> None:
        """Begins to call a method of the worker's object; its end is told by `poll` and `wait`."""
        with contextlib.suppress(ConnectionError):  # the answer says why it is gone
            self._channel.send(_packed([method, *arguments]))

    def poll(self) -> bool:
        """Has the call ended? Cheap: it looks ten times a second at the most.

        Raises:
            JobError: it failed; the class is that of the failure.
            OutOfMemory: the process was killed, as the kernel does where memory runs out.
        """
        now = time.monotonic()
        if now < self._next_look:
            return False
        self._next_look = now + _POLL
        return self._look(0)

    def wait(self) -> None:
        """Returns when the call has ended.

        Raises:
            Interrupted: a signal has come.
            JobError: as of `poll`.
        """
        while True:
            interrupt.check()
            if self._look(_POLL):
                return

    def close(self) -> None:
        """Ends the process."""
        self._channel.close()

    def _look(self, seconds: float) -> bool:
        if not select.select([self._channel], [], [], seconds)[0]:
            if not self._server.alive:
                raise self._server.lost()
            return False
        try:
            message = self._channel.recv(_MESSAGE)
        except ConnectionError:  # it has ended with a call unread: what was said of that is next
            message = self._channel.recv(_MESSAGE)
        if not message:
            raise self._server.lost()
        said = json.loads(message)
        if "status" in said:
            raise _ended(self._name, said["status"], "")
        if "code" in said:
            sys.stderr.write(said["traceback"])
            raise error_of(said["code"], said["message"])
        return True


def _packed(message: object) -> bytes:
    return json.dumps(message).encode()


def _ended(who: str, status: int | str, said: str) -> JobError:
    """What it means that a process ended, with this exit status as `subprocess` gives it.

    Raises:
        Interrupted: a signal has come; where it was sent to all processes, it ended that one.
    """
    interrupt.check()
    if status == -signal.SIGKILL:
        return OutOfMemory(f"{who} was killed, most likely for want of memory: give the job more")
    return JobError(f"{who} ended with {status}: {said or 'it said nothing'}")


# The server.


def main() -> NoReturn:
    """Imports, and forks a worker for each request, until nobody is there to ask for one."""
    control = socket.socket(fileno=0)
    for module in PRELOAD:
        with contextlib.suppress(Exception):
            importlib.import_module(module)
    channels: dict[int, socket.socket] = {}

    def reap(*_: object) -> None:
        """Tells the other end of a worker's channel how the worker ended."""
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                with channels.pop(ended[0]) as channel, contextlib.suppress(OSError):
                    channel.send(_packed({"status": os.waitstatus_to_exitcode(ended[1])}))

    signal.signal(signal.SIGCHLD, reap)
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, _MESSAGE, 1)
        if not message:
            break
        channel = socket.socket(fileno=descriptors[0])
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
        with warnings.catch_warnings():
            # Python 3.12 warns where there are threads: those are OpenBLAS's, which knows of forks.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
            os.dup2(os.open(os.devnull, os.O_RDONLY), control.detach())
            _work(channel, *json.loads(message))
        channels[pid] = channel
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()
    os._exit(0)  # nothing is left to be done, and Python would take long to take torch apart


def _work(channel: socket.socket, kind: str, *arguments: str) -> NoReturn:
    """A worker's life."""
    threading.Thread(target=_end_with, args=(channel,), daemon=True).start()
    try:
        target = pkgutil.resolve_name(kind)(*arguments)
        while message := channel.recv(_MESSAGE):
            method, *values = json.loads(message)
            getattr(target, method)(*values)
            channel.send(_packed({"done": method}))
    except Exception as error:  # noqa: BLE001  told at the other end
        channel.send(_packed(_told(error)))
    os._exit(0)


def _told(error: Exception) -> dict[str, Any]:
    if (ours := known(error)) is not None:
        return {"code": int(ours.code), "message": str(ours)[:_TEXT], "traceback": ""}
    trace = "".join(traceback.format_exception(error))[-_TEXT:]
    message = f"{type(error).__name__}: {error}"[:_TEXT]
    return {"code": int(ExitCode.SOFTWARE), "message": message, "traceback": trace}


def _end_with(channel: socket.socket) -> None:
    """Ends this process, in the midst of its work too, when the other end of `channel` is gone."""
    hang_up = select.poll()
    hang_up.register(channel, select.POLLRDHUP)
    hang_up.poll()
    os._exit(1)


if __name__ == "__main__":
    main()
