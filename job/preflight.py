"""The end tried before the beginning: the untrained model, exported and verified.

A model that cannot be exported, or whose files no engine runs right, then fails in the first
seconds and not after the training.
"""

import sys
import tempfile
from pathlib import Path

import torch

from job.artifacts import write_artifacts
from job.child import be_child, run_child
from job.config import Config
from job.data import load_data
from job.device import memory_limit
from job.errors import Verdict
from job.model import build_model
from job.verify import Verification, verify_files

# Of the same kind and width as those of the training, but few. A file is read whole: how many
# classes it has stands nowhere else.
ROWS = {"samples": 200, "validation": 0.1, "test": 0.4}
BATCHES = (1, 3)


def preflight(config: Config, folder: Path) -> Verification:
    """Exports the untrained model into `folder`, which is empty, and verifies the files there."""
    rows = config.data if config.data.kind == "file" else config.data.model_copy(update=ROWS)
    data = load_data(rows, config.seed_number, memory_limit(), config.train.task)
    config.require_fit(len(data.training.x), len(data.classes))
    model = build_model(config, data.training.x, data.training.y, len(data.classes)).eval()
    cpu = torch.device("cpu")
    reference = write_artifacts(model, data, config, cpu, folder, "preflight", BATCHES)
    return verify_files(folder, reference).explained(folder, reference)


def preflight_in_child(config: Config, evidence: Path) -> None:
    """The same in a process of its own, because a second export in one process differs in names.

    What was found is written to the folder `evidence` if it is a mismatch.

    Raises:
        ExportMismatch: the files do not agree with the model.
        JobError: it failed otherwise; the class is that of the failure.
        Interrupted: a signal has come.
    """
    run_child("job.preflight", config.model_dump_json(), str(evidence))


def main() -> None:
    config, evidence = sys.argv[1:]
    try:
        with tempfile.TemporaryDirectory() as folder:
            found = preflight(Config.model_validate_json(config), Path(folder))
        if found.faults:
            found.write(Path(evidence))
        found.require_agreement()
    except Verdict as verdict:
        raise type(verdict)(f"before the training: {verdict}") from None


if __name__ == "__main__":
    be_child(main)
