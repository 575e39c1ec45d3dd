"""`python -m job`."""

import contextlib
import os
import sys
import time

STARTED = time.time()

from job import interrupt  # noqa: E402  (the clock runs before anything is imported)
from job.cli import last_words, main  # noqa: E402


def open_closed_streams() -> None:
    """What is opened next would else be taken for the stream whose number it gets."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            stream = open(number, "r" if number == 0 else "w", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)


if __name__ == "__main__":
    open_closed_streams()
    interrupt.install(last_words)
    code = main(sys.argv[1:], started=STARTED)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # its reader has gone
            stream.flush()
    # All is said and written. To take torch apart, Python would need another second.
    os._exit(code)
