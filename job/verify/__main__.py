"""`python -m job.verify FOLDER REFERENCE RESULT`: the verifying process of a run."""

import sys
from pathlib import Path

from job.child import be_child
from job.verify.fresh import save_result, verify_staged
from job.verify.reference import Reference


def main() -> None:
    folder, reference, result = map(Path, sys.argv[1:])
    save_result(verify_staged(folder, Reference.load(reference)), result)


if __name__ == "__main__":
    be_child(main)
