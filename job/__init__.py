"""A batch training job whose exit code can be trusted: exit 0 means verified."""

__version__ = "1.0.0"
