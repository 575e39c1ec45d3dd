"""`python -m job`."""

import sys
import time

STARTED = time.time()

from job import interrupt  # noqa: E402  (the clock runs before anything is imported)
from job.cli import last_words, main  # noqa: E402

if __name__ == "__main__":
    interrupt.install(last_words)
    sys.exit(main(sys.argv[1:], started=STARTED))
