"""Work in a fresh interpreter, which inherits nothing and ends with its parent."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import job
from job import interrupt
from job.errors import ExitCode, error_of


def run_child(module: str, *arguments: str) -> None:
    """Runs `python -m module arguments` to its end.

    Raises:
        Interrupted: a signal has come; the process is gone.
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
        if process.returncode not in set(ExitCode):
            last = f"{module} ended with {process.returncode}: {last}"
        raise error_of(process.returncode, last)


def _wait(process: subprocess.Popen[bytes]) -> bytes:
    """What it said on stderr, once it has ended."""
    while True:
        interrupt.check()
        try:
            return process.communicate(timeout=0.1)[1]
        except subprocess.TimeoutExpired:
            continue


def end_with_parent() -> None:
    """The other end, called first of all by the module that is run."""

    def watch() -> None:
        os.read(0, 1)  # returns when nobody holds the other end any more
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
