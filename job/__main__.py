"""`python -m job`."""

import contextlib
import os
import sys
import time

STARTED = time.time()

from job import interrupt  # noqa: E402  (the clock runs before anything is imported)
from job.cli import last_words, main  # noqa: E402

if __name__ == "__main__":
    interrupt.install(last_words)
    code = main(sys.argv[1:], started=STARTED)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError):  # None where it was closed; gone
            stream.flush()
    # All is said and written. To take torch apart, Python would need another second.
    os._exit(code)
