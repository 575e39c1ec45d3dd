"""Verification in a process of its own, which knows nothing but the files on disk."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import job
from job.errors import JobError
from job.verify.compare import Comparison
from job.verify.files import Verification
from job.verify.reference import Reference


def verify_in_fresh_process(folder: Path, reference: Reference, work: Path) -> Verification:
    """What `verify_files` finds in a new interpreter, which is told nothing but files.

    `work` is a private folder through which reference and result are handed over.

    Raises:
        JobError: the process ended without a result, so nothing is known about the files.
    """
    question, result = work / "reference.safetensors", work / "result.json"
    result.unlink(missing_ok=True)  # an earlier one is no answer
    reference.save(question)
    package_root = str(Path(job.__file__).resolve().parent.parent)
    path = os.pathsep.join([package_root, *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        # -P: what lies in the working directory is not imported.
        [sys.executable, "-P", "-m", "job.verify", str(folder), str(question), str(result)],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=False,
    )
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise JobError(f"the verifying process ended with {done.returncode}: {' '.join(said)}")
    try:
        found = json.loads(result.read_text())
        comparisons = [Comparison(**entry) for entry in found["comparisons"]]
        return Verification(comparisons, found["skipped"], found["sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise JobError(f"the verifying process left no result: {error!r}") from None


def save_result(verification: Verification, result: Path) -> None:
    """The other end: writes what `verify_in_fresh_process` reads."""
    found = {
        "comparisons": [asdict(c) for c in verification.comparisons],
        "skipped": verification.skipped,
        "sha256": verification.sha256,
    }
    result.write_text(json.dumps(found))
