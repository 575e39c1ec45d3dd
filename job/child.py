"""Work in a fresh interpreter, which inherits nothing and ends with its parent."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import job
from job import interrupt
from job.errors import JobError, OutOfMemory, error_of, known

# How a process that failed says with which code, and after it why.
_SAID = "job error {}:"


def run_child(module: str, *arguments: str) -> None:
    """Runs `python -m module arguments` to its end.

    Raises:
        Interrupted: a signal has come; the process is gone.
        OutOfMemory: it was killed, as the kernel does where memory runs out.
        JobError: it failed; the class is that of its exit code, the message its last line.
    """
    # -P: what lies in the working directory is not imported.
    command = [sys.executable, "-P", "-m", module, *arguments]
    root = str(Path(job.__file__).resolve().parent.parent)
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    lifeline, end = os.pipe()  # closes with this process, however that ends
    try:
        process = subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": path},
            stdin=lifeline,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,  # a terminal's Ctrl-C is for this process
        )
        try:
            said = _wait(process)
        finally:
            process.kill()
            process.wait()
    finally:
        os.close(lifeline)
        os.close(end)
    interrupt.check()
    if process.returncode != 0:
        last = " ".join(said.decode(errors="replace").strip().splitlines()[-1:])
        # A code alone is no verdict: the process may have crashed with it.
        prefix = _SAID.format(process.returncode)
        if last.startswith(prefix):
            raise error_of(process.returncode, last.removeprefix(prefix).strip())
        if process.returncode == -signal.SIGKILL:
            raise OutOfMemory(
                f"{module} was killed, most likely for want of memory: give the job more"
            )
        raise JobError(f"{module} ended with {process.returncode}: {last}")


def _wait(process: subprocess.Popen[bytes]) -> bytes:
    """What it said on stderr, once it has ended."""
    while True:
        interrupt.check()
        try:
            return process.communicate(timeout=0.1)[1]
        except subprocess.TimeoutExpired:
            continue


def be_child(work: Callable[[], None]) -> NoReturn:
    """The other end: does `work`, ends with the parent, and tells it what went wrong."""

    def watch() -> None:
        os.read(0, 1)  # returns when nobody holds the other end any more
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    try:
        work()
    except Exception as error:
        if (ours := known(error)) is None:
            raise
        print(_SAID.format(int(ours.code)), *str(ours).split(), file=sys.stderr)
        sys.exit(ours.code)
    sys.exit(0)
