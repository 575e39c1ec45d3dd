"""Verification in a process of its own, which knows nothing but the files on disk."""

import json
import tempfile
from dataclasses import asdict
from pathlib import Path

from job.child import run_child
from job.errors import JobError
from job.verify.compare import Comparison
from job.verify.files import Verification
from job.verify.reference import Reference


def verify_in_fresh_process(folder: Path, reference: Reference, work: Path) -> Verification:
    """What `verify_files` finds in a new interpreter, which is told nothing but files.

    `work` is a private folder through which reference and result are handed over.

    Raises:
        Interrupted: a signal has come.
        JobError: the process ended without a result, so nothing is known about the files.
    """
    # New each time: an earlier result is no answer.
    with tempfile.TemporaryDirectory(dir=work) as handover:
        question, result = Path(handover) / "reference.safetensors", Path(handover) / "result.json"
        reference.save(question)
        run_child("job.verify", str(folder), str(question), str(result))
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
