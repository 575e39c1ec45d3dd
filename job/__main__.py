"""`python -m job`."""

import signal
import sys
import time

STARTED = time.time()

from job.cli import main, terminate  # noqa: E402  (the clock runs before anything is imported)

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, terminate)
    sys.exit(main(sys.argv[1:], started=STARTED))
