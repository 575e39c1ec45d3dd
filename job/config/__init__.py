"""job.yaml, overrides and environment keys -> one frozen, typed configuration. No torch here."""

from job.config.load import load_config, to_yaml
from job.config.schema import (
    MIN_TEST_ROWS,
    SPLITS,
    Checkpoint,
    Config,
    Data,
    Gate,
    Optimizer,
    Schedule,
    Task,
    Train,
)

__all__ = [
    "MIN_TEST_ROWS",
    "SPLITS",
    "Checkpoint",
    "Config",
    "Data",
    "Gate",
    "Optimizer",
    "Schedule",
    "Task",
    "Train",
    "load_config",
    "to_yaml",
]
