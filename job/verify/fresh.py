"""Verification in a process of its own, which knows nothing but the files on disk."""

import json
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from job.durable import write_npy
from job.errors import JobError
from job.forkserver import ForkServer
from job.verify.compare import Comparison
from job.verify.diagnose import Diagnosis
from job.verify.files import FAILING_INPUT, Verification, verify_files
from job.verify.judgement import Judgement
from job.verify.reference import Reference
from job.verify.selftest import self_check


def verify_in_fresh_process(
    server: ForkServer, folder: Path, reference: Reference, work: Path
) -> Verification:
    """What `verify_staged` finds in a new process, which is told nothing but files.

    `work` is a private folder through which reference and result are handed over.

    Raises:
        Interrupted: a signal has come.
        JobError: the process ended without a result, so nothing is known about the files.
    """
    # New each time: an earlier result is no answer.
    with tempfile.TemporaryDirectory(dir=work) as handover:
        question, result = Path(handover) / "reference.safetensors", Path(handover) / "result.json"
        reference.save(question)
        worker = server.worker("job.verify.fresh:Verifier")
        worker.call("verify", str(folder), str(question), str(result))
        worker.wait()
        worker.close()
        try:
            return _read(result)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise JobError(f"the verifying process left no result: {error!r}") from None


class Verifier:
    """The other end, in that process."""

    def verify(self, folder: str, question: str, result: str) -> None:
        """Writes what `verify_staged` finds to the file `result`."""
        reference, target = Reference.load(Path(question)), Path(result)
        save_result(verify_staged(Path(folder), reference, target.parent), target)


def verify_staged(folder: Path, reference: Reference, work: Path) -> Verification:
    """What `verify_files` finds, and then: if all agree, whether it would have noticed wrong
    files, which it makes in the folder `work`; if not, where they part from the model."""
    verification = verify_files(folder, reference).explained(folder, reference)
    if verification.faults:
        return verification
    return replace(verification, self_check=list(self_check(folder, reference, work)))


def save_result(verification: Verification, result: Path) -> None:
    """Writes what `_read` reads."""
    found = asdict(verification)
    if found["diagnosis"]:
        write_npy(result.with_name(FAILING_INPUT), found["diagnosis"].pop("input"))
    result.write_text(json.dumps(found))


def _read(result: Path) -> Verification:
    found = json.loads(result.read_text())
    diagnosis = None
    if found["diagnosis"]:
        failing = np.load(result.with_name(FAILING_INPUT), allow_pickle=False)
        diagnosis = Diagnosis(**found["diagnosis"], input=failing)
    return Verification(
        [Comparison(**entry) for entry in found["comparisons"]],
        found["skipped"],
        found["sha256"],
        [Judgement(**entry) for entry in found["self_check"]],
        diagnosis,
    )
