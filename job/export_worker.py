"""The process that exports: it tries the untrained model and writes the trained one."""

import tempfile
from pathlib import Path

from job.config import Config
from job.errors import ExportMismatch
from job.export import Exporter, write_goldens
from job.model import model_of
from job.verify import Reference, Verification, verify_files


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
        try:
            found.require_agreement()
        except ExportMismatch as mismatch:
            found.write(Path(evidence))
            raise ExportMismatch(f"untrained already: {mismatch}") from None

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
