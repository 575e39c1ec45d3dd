"""The end tried at the beginning: the untrained model, exported and verified.

A model that cannot be exported, or whose files no engine runs right, then fails while the first
epochs are trained and not after the last.
"""

import tempfile
from pathlib import Path

import torch

from job.artifacts import reference_of
from job.config import Config
from job.data import load_data
from job.device import memory_limit
from job.errors import Verdict
from job.export import Exporter, write_goldens
from job.model import build_model, model_of
from job.verify import Reference, Verification, verify_files

# For `check`, of the same kind and width as those of the training, but few. A file is read whole:
# how many classes it has stands nowhere else.
ROWS = {"samples": 200, "validation": 0.1, "test": 0.4}


def preflight(config: Config, folder: Path) -> Verification:
    """Exports an untrained model of few rows into `folder`, which is empty, and verifies it."""
    rows = config.data if config.data.kind == "file" else config.data.model_copy(update=ROWS)
    data = load_data(rows, config.seed_number, memory_limit(), config.train.task)
    config.require_fit(len(data.training.x), len(data.classes))
    model = build_model(config, data.training.x, data.training.y, len(data.classes)).eval()
    reference = reference_of(model, data, config, torch.device("cpu"))
    return ExportWorker(config, reference).tried(reference, folder)


class ExportWorker:
    """Exports a model; lives in a process of its own, as a second TorchScript trace in one process
    would name things differently, and so give other bytes."""

    def __init__(self, config: Config, reference: Reference) -> None:
        """The model is that of `config` with the weights of `reference`."""
        self.exporter = Exporter(model_of(config, reference.weights), config)

    @classmethod
    def from_files(cls, config: str, reference: str) -> "ExportWorker":
        """`config` is JSON, `reference` the path that `Reference.save` wrote to."""
        return cls(Config.model_validate_json(config), Reference.load(Path(reference)))

    def preflight(self, reference: str, scratch: str, evidence: str) -> None:
        """Holds the untrained model's files against the reference in the file of that path.

        They are made in the folder `scratch` and removed. What was found is written to the folder
        `evidence` if it is a mismatch.

        Raises:
            ExportMismatch: the files do not agree with the model.
        """
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            found = self.tried(Reference.load(Path(reference)), Path(folder))
        if found.faults:
            found.write(Path(evidence))
        try:
            found.require_agreement()
        except Verdict as verdict:
            raise type(verdict)(f"untrained already: {verdict}") from None

    def tried(self, reference: Reference, folder: Path) -> Verification:
        """What the verifier finds in the files of the model, which are left in `folder`."""
        self._write(folder, reference, "preflight")
        return verify_files(folder, reference).explained(folder, reference)

    def write(self, folder: str, reference: str, fingerprint: str) -> None:
        """Writes model files with the weights, and the goldens, that the reference in the file of
        that path has, into `folder`."""
        self._write(Path(folder), Reference.load(Path(reference)), fingerprint)

    def _write(self, folder: Path, reference: Reference, fingerprint: str) -> None:
        write_goldens(folder, reference.golden_input, reference.golden_output)
        self.exporter.write(reference.weights, folder, fingerprint)
