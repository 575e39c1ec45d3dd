"""Verifies a published folder again: hashes first, then the same checks as before publishing."""

import importlib.util
import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from job.errors import DataError, MissingInputError
from job.manifest import read_manifest
from job.verify.files import ALWAYS, GOLDENS, MODEL_FILES, Verification, verify_files
from job.verify.reference import Reference
from job.verify.weights import weights_of

# A manifest that says more is not followed.
MAX_THREADS = 1024


def verify_published(folder: Path) -> Verification:
    """Everything that can be checked of a published folder with what is installed here, and where
    a file that is wrong parts from the model.

    Raises:
        MissingInputError: there is no published folder, or nothing here can read its weights or
            run its models.
        DataError: a file is missing or is not the one that was published.
    """
    verification, reference = judge_published(folder)
    return verification.explained(folder, reference)


def judge_published(folder: Path) -> tuple[Verification, Reference]:
    """`verify_published` without an explanation, and what the files were held against."""
    manifest = read_manifest(folder)
    if not any(map(importlib.util.find_spec, ("onnxruntime", "torch"))):
        raise MissingInputError("nothing here can run the models; install onnxruntime")
    _require_listed(folder, manifest["files"])
    reference = reference_of(folder, manifest)
    _compute_as_then(manifest)
    verification = verify_files(folder, reference)
    for name, digest in verification.sha256.items():
        # The bytes that were verified are the ones whose hash was checked.
        if manifest["files"][name]["sha256"] != digest:
            raise DataError(f"{folder}: {name} changed while it was verified")
    return verification, reference


def _compute_as_then(manifest: dict[str, Any]) -> None:
    """With as many threads as before publishing: another number rounds differently."""
    device = manifest.get("device")
    threads = device.get("threads") if isinstance(device, dict) else None
    if importlib.util.find_spec("torch") and type(threads) is int and 1 <= threads <= MAX_THREADS:
        import torch

        torch.set_num_threads(threads)


def _require_listed(folder: Path, files: Any) -> None:
    """What is loaded below has a hash that was checked: a file without one is not ours."""
    present = [name for name in MODEL_FILES if (folder / name).exists()]
    for name in (*ALWAYS, *present, *GOLDENS):
        if name not in files:
            raise DataError(f"{folder}: manifest.json does not list {name}")


def reference_of(folder: Path, manifest: dict[str, Any]) -> Reference:
    try:
        activation = manifest["model"]["activation"]
        batches = manifest["verification"]["batches"]
        task = manifest["signature"]["task"]
    except (KeyError, TypeError) as error:
        raise DataError(f"{folder}: manifest.json is malformed: {error!r}") from None
    reference = Reference(
        weights=_trained_weights(folder),
        activation=activation,
        batches=batches,
        golden_input=_golden(folder, "input"),
        golden_output=_golden(folder, "output"),
        task=task,
    )
    try:
        reference.check()
    except DataError as error:
        raise DataError(f"{folder}: {error}") from None
    return reference


def _trained_weights(folder: Path) -> dict[str, NDArray[np.float32]]:
    for name in ("model.safetensors", "model.torchscript.pt", "model.onnx"):
        if (folder / name).exists():
            try:
                found = weights_of(name, (folder / name).read_bytes())
            except Exception as error:  # noqa: BLE001  whatever it is, the file is malformed
                raise DataError(f"{folder}: {name} holds no weights: {error}") from None
            if found is not None:
                return dict(found)
    raise MissingInputError(
        f"{folder} holds no model.safetensors; install onnx to read its weights"
    )


def _golden(folder: Path, name: str) -> NDArray[np.float32]:
    path = folder / "golden" / f"{name}.npy"
    try:
        values = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
    except Exception as error:  # noqa: BLE001  whatever it is, the file is malformed
        raise DataError(f"{folder}: golden/{name}.npy is malformed: {error}") from None
    if not isinstance(values, np.ndarray) or values.dtype != np.float32:
        raise DataError(f"{folder}: golden/{name}.npy does not hold float32 numbers")
    return values
