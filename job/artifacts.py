"""A model's files, made together with what they must agree with."""

from collections.abc import Sequence
from pathlib import Path

import torch

from job.config import Config
from job.data import Dataset
from job.export import export_model, write_goldens
from job.model import MLP
from job.train import predict
from job.verify import Reference, with_training_batch


def batches_to_verify(config: Config, data: Dataset) -> list[int]:
    """Those of the configuration and that of the training."""
    rows, features = data.training.x.shape
    outputs = len(data.classes) or data.training.y.shape[1]
    widest = max(features, *config.model.hidden, outputs)
    return with_training_batch(config.verify.batches, config.train.batch_size, rows, widest)


def write_artifacts(
    model: MLP,
    data: Dataset,
    config: Config,
    device: torch.device,
    folder: Path,
    fingerprint: str,
    batches: Sequence[int],
) -> Reference:
    """Writes goldens and model files into `folder`; returns the model's numbers and own answers.

    Raises:
        Interrupted: a signal has come.
    """
    reference = Reference.of_model(
        model.weights(),
        config.model.activation,
        batches,
        data.golden_input,
        answer=lambda x: predict(model, x, device),
        task=config.train.task,
    )
    write_goldens(folder, reference.golden_input, reference.golden_output)
    export_model(model, folder, config, fingerprint)
    return reference
