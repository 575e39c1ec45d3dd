"""Verifies a published folder again: hashes first, then the same checks as before publishing."""

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from job.errors import DataError, MissingInputError
from job.manifest import read_manifest
from job.verify.files import Verification, verify_files
from job.verify.oracle import ACTIVATIONS
from job.verify.reference import Reference
from job.verify.weights import weights_of


def verify_published(folder: Path) -> Verification:
    """Everything that can be checked of a published folder with what is installed here.

    Raises:
        MissingInputError: there is no published folder, or nothing here can read its weights.
        DataError: a file is missing or is not the one that was published.
    """
    manifest = read_manifest(folder)
    try:
        activation = str(manifest["model"]["activation"])
        batches = [int(n) for n in manifest["verification"]["batches"]]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{folder}: manifest.json is malformed: {error!r}") from None
    if activation not in ACTIVATIONS:
        raise DataError(f"{folder}: manifest.json names the activation {activation!r}")
    reference = Reference(
        weights=_trained_weights(folder),
        activation=activation,
        batches=batches,
        golden_input=_golden(folder, "input"),
        golden_output=_golden(folder, "output"),
    )
    verification = verify_files(folder, reference)
    for name, digest in verification.sha256.items():
        # The bytes that were verified are the ones whose hash was checked.
        if manifest["files"].get(name, {}).get("sha256") != digest:
            raise DataError(f"{folder}: {name} changed while it was verified")
    return verification


def _trained_weights(folder: Path) -> dict[str, NDArray[np.float32]]:
    for name in ("model.safetensors", "model.onnx"):
        if (folder / name).exists():
            found = weights_of(name, (folder / name).read_bytes())
            if found is not None:
                return dict(found)
    raise MissingInputError(
        f"{folder} holds no model.safetensors; install onnx to read its weights"
    )


def _golden(folder: Path, name: str) -> NDArray[np.float32]:
    path = folder / "golden" / f"{name}.npy"
    if not path.exists():
        raise DataError(f"{folder}: golden/{name}.npy is missing")
    try:
        values: NDArray[np.float32] = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{folder}: golden/{name}.npy is malformed: {error}") from None
    if values.dtype != np.float32 or values.ndim != 2:
        raise DataError(f"{folder}: golden/{name}.npy holds {values.dtype}{values.shape}")
    return values
