"""`python -m job`."""

import sys
import time

STARTED = time.time()

from job.cli import main  # noqa: E402  (the clock runs before anything is imported)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], started=STARTED))
