"""A model's files, made in a process of their own, and what they must agree with."""

from collections.abc import Sequence
from pathlib import Path

import torch

from job import interrupt
from job.config import Config
from job.data import Dataset
from job.forkserver import ForkServer
from job.log import event
from job.model import MLP
from job.train import predict
from job.verify import Reference
from job.verify.battery import MAX_BATCH, MAX_VALUES

# Enough to see that the untrained model's files run, whatever the batch.
BATCHES = (1, 3)


def batches_to_verify(config: Config, data: Dataset) -> list[int]:
    """Those of the configuration and that of the training, as far as its widest layer allows it."""
    rows, features = data.training.x.shape
    outputs = len(data.classes) or data.training.y.shape[1]
    widest = max(features, *config.model.hidden, outputs)
    batch = max(1, min(config.train.batch_size, rows, MAX_BATCH, MAX_VALUES // widest))
    return sorted({*config.verify.batches, batch})


def reference_of(
    model: MLP,
    data: Dataset,
    config: Config,
    device: torch.device,
    batches: Sequence[int] = BATCHES,
) -> Reference:
    """The model's numbers, and its own answers, computed on `device`."""
    return Reference.of_model(
        model.weights(),
        config.model.activation,
        batches,
        data.golden_input,
        answer=lambda x: predict(model, x, device),
        task=config.train.task,
    )


class Artifacts:
    """The export of a model in a process of its own, begun before the training.

    There the model is traced once; the untrained files, which are verified while the training goes
    on, and the trained ones differ in nothing but weights.
    """

    def __init__(
        self,
        server: ForkServer,
        model: MLP,
        data: Dataset,
        config: Config,
        device: torch.device,
        scratch: Path,
        evidence: Path,
    ) -> None:
        """Begins with the untrained `model`. `scratch` is a private folder; what is found wrong of
        the untrained files is written to the folder `evidence`.

        Raises:
            Interrupted: a signal has come.
        """
        self._said = False
        self._question = scratch / "reference.safetensors"
        reference_of(model.to(device).eval(), data, config, device).save(self._question)
        interrupt.check()
        question = str(self._question)
        self._worker = server.worker(
            "job.export_worker:ExportWorker.from_files", config.model_dump_json(), question
        )
        self._worker.call("preflight", question, str(scratch), str(evidence))

    def check(self) -> None:
        """Called at every step of the training.

        Raises:
            ExportMismatch: the untrained model's files do not agree with it.
            JobError: the export failed otherwise; the class is that of the failure.
        """
        if not self._said and self._worker.poll():
            self._say()

    def wait(self) -> None:
        """Returns when the untrained model's files are verified.

        Raises:
            Interrupted: a signal has come.
            ExportMismatch, JobError: as of `check`.
        """
        if not self._said:
            self._worker.wait()
            self._say()

    def write(self, reference: Reference, folder: Path, fingerprint: str) -> None:
        """Writes the goldens and the model files with the weights of `reference` into `folder`.

        Raises:
            Interrupted, ExportMismatch, JobError: as of `wait`.
        """
        self.wait()
        reference.save(self._question)
        self._worker.call("write", str(folder), str(self._question), fingerprint)
        self._worker.wait()
        self._worker.close()

    def _say(self) -> None:
        self._said = True
        event("preflight", "the untrained model was exported and verified")
