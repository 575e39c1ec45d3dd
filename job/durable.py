"""Files and folders that are whole or not there, also after a power cut."""

import io
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray


def write_npy(path: Path, values: "NDArray[Any]") -> None:
    """Writes an .npy file. numpy's own `save` says nothing where the last of its bytes, which it
    writes when it closes the file, find the disk full.

    Raises:
        OSError: it could not be written.
    """
    import numpy as np

    content = io.BytesIO()
    np.save(content, values, allow_pickle=False)
    path.write_bytes(content.getvalue())


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A new file beside `path`, which takes its place at the end: no half file is ever seen.

    Its content is on the disk by then; for its name to be there too, the folder must be fsynced.

    Raises:
        OSError: what was there before is untouched, as it is where anything else is raised within.
    """
    temporary = _beside(path)
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def move_folder(source: Path, target: Path) -> None:
    """Renames a folder after all in it is on the disk; `target` must not be there.

    Raises:
        OSError: `target` is there, or the disk failed; then `target` is as it was.
    """
    for path in sorted(source.rglob("*"), reverse=True):
        fsync(path)
    fsync(source)
    os.rename(source, target)
    fsync(target.parent)


def remove_folder(folder: Path) -> None:
    """Takes a folder out of sight at once, then deletes it; one that is not there is no error.

    A process that still works in it finds its path gone, and can no longer rename it elsewhere: no
    folder that has lost a part can become visible.
    """
    gone = _beside(folder)
    try:
        os.rename(folder, gone)
    except FileNotFoundError:
        return
    shutil.rmtree(gone, ignore_errors=True)


def fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _beside(path: Path) -> Path:
    """A new hidden name in the same folder, and so on the same file system."""
    return path.with_name(f".{path.name[:100]}.{secrets.token_hex(6)}")
