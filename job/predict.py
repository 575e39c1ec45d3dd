"""Rows through a published model. Needs only onnxruntime and numpy.

Shapes: N rows, F features, O outputs.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from job.errors import DataError, MissingInputError, NoPermission, OutputError, UsageError
from job.log import event
from job.manifest import published_bytes, read_manifest
from job.verify.engines import load_onnx

# Rows that go through the model at once: bounds the memory, whatever the number of rows.
ROWS_AT_ONCE = 8192


def predict_file(folder: Path, source: Path, target: Path) -> int:
    """Writes the published model's answers to the rows in `source` to `target`; returns N.

    `source` is an .npy array (N, F) of numbers, `target` an .npy array (N, O) of float32. The
    target is written whole or not at all.

    Raises:
        UsageError: a file's name does not end in .npy.
        MissingInputError: there is no published folder, or no rows.
        DataError: a published file or the rows are malformed.
        OutputError: the target cannot be created.
    """
    for path in (source, target):
        if path.suffix != ".npy":
            raise UsageError(f"{path} is not an .npy file, the only kind that is read and written")
    manifest = read_manifest(folder)
    try:
        names = list(manifest["signature"]["inputs"][0]["features"])
        columns = int(manifest["signature"]["outputs"][0]["shape"][1])
    except (LookupError, TypeError, ValueError) as error:
        raise DataError(f"{folder}: manifest.json is malformed: {error!r}") from None
    rows = _read_rows(source, names)
    run = load_onnx(published_bytes(folder, manifest, "model.onnx"))
    answers = np.empty((len(rows), columns), np.float32)
    for start in range(0, len(rows), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        answers[part] = np.asarray(run(np.ascontiguousarray(rows[part], dtype=np.float32)))
    _write(target, answers)
    event("predicted", f"{len(rows):,} rows answered", rows=len(rows))
    return len(rows)


def _read_rows(source: Path, names: list[str]) -> NDArray[Any]:
    """The rows (N, F), left on disk until they are used."""
    if not source.is_file():
        raise MissingInputError(f"there is no file {source}; give the rows with --input")
    try:
        rows = np.load(source, mmap_mode="r", allow_pickle=False)
    except PermissionError:
        raise NoPermission(f"{source} may not be read") from None
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{source} is not an .npy array of numbers: {error}") from None
    if not isinstance(rows, np.ndarray) or rows.dtype.kind not in "fiub":
        raise DataError(f"{source} does not hold an array of real numbers")
    if rows.ndim != 2 or rows.shape[1] != len(names):
        shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
        raise DataError(
            f"{source} has shape {rows.shape}; expected (rows, {len(names)}) with columns {shown}"
        )
    return rows


def _write(target: Path, answers: NDArray[np.float32]) -> None:
    """Through a temporary file beside the target, so that no half file is ever seen."""
    if target.is_dir() or not target.parent.is_dir():
        raise OutputError(f"{target} cannot be created: its folder is missing, or it is a folder")
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with open(descriptor, "wb") as file:
            np.save(file, answers, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise


def _umask() -> int:
    """mkstemp gives 0600; the answers should have the rights of any new file."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
