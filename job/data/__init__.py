"""Rows to learn from: a function of (configuration, seed, row), split, with a digest."""

from job.data.dataset import Dataset, Split, load_data

__all__ = ["Dataset", "Split", "load_data"]
