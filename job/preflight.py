"""`check --preflight`: the untrained model, exported and verified.

A run does the same beside its first epochs (`job/artifacts.py`).
"""

from pathlib import Path

import torch

from job.artifacts import reference_of
from job.config import Config
from job.data import load_data
from job.device import memory_limit
from job.export_worker import ExportWorker
from job.model import build_model
from job.verify import Verification

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
