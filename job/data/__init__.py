"""Rows to learn from: synthetic ones, a function of (configuration, seed, row), or a file's."""

from job.config import Data, Task
from job.data.dataset import Dataset, Split, make_rows
from job.data.file import file_sha256, load_file

__all__ = ["Dataset", "Split", "file_sha256", "load_data"]


def load_data(config: Data, seed: int, memory: int, task: Task = "regression") -> Dataset:
    """All rows; see `make_rows` and `load_file`. `task` is how a file's target is read; a synthetic
    kind knows its own."""
    if config.kind == "file":
        return load_file(config, seed, memory, task)
    return make_rows(config, seed, memory)
