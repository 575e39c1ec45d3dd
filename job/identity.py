"""What makes two runs the same: the fingerprint, and the names that runs go by."""

import hashlib
import importlib.metadata
import json
import platform
import re
import secrets
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import job
from job.config import Config
from job.device import Device
from job.errors import UsageError
from job.manifest import Identity

LIBRARIES = ("torch", "onnx", "onnxruntime", "onnxscript", "numpy", "safetensors")

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def versions() -> dict[str, str]:
    """Python's version and those of the libraries that shape the result."""
    found = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {"python": platform.python_version(), "job": job.__version__, **found}


def identify(config: Config, device: Device) -> Identity:
    """Equal fingerprints, equal models.

    But for `seed: run`, which first must be resolved: a run's fingerprint is that of its number.
    """
    facts = {
        # A data file is its sha256, wherever it lies.
        "config": config.model_dump(
            mode="json", exclude={"output": True, "train": {"checkpoint"}, "data": {"path"}}
        ),
        "sources": _sources(),
        "versions": versions(),
        "device": device.type,
    }
    processes = {"threads": device.threads, "world_size": device.ranks.size}
    return Identity(_digest(facts | processes), _digest(facts), device.ranks.size)


def _digest(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@cache
def _sources() -> str:
    """A digest of the package's own files."""
    root = Path(job.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def new_run_id(fingerprint: str) -> str:
    """A name that sorts by time: <UTC time>-<fingerprint, 8 hex>-<random>."""
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    return f"{now}-{fingerprint[:8]}-{secrets.token_hex(3)}"


def check_run_id(run_id: str) -> str:
    """The run id if it can name a folder everywhere.

    Raises:
        UsageError: it is empty, too long, or holds what a folder's name should not.
    """
    if not _RUN_ID.fullmatch(run_id):
        raise UsageError(
            f"the run id {run_id[:60]!r} is not usable: up to 128 letters, digits, '.', "
            f"'_' and '-', beginning with a letter or digit"
        )
    return run_id
