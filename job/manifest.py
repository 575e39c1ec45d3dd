"""manifest.json: what a published folder holds, with the hash of every file in it."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from job.errors import DataError, MissingInputError

CONTRACT = 1
MANIFEST = "manifest.json"
MANIFEST_HASH = "manifest.sha256"


@dataclass(frozen=True)
class Identity:
    """What a run is known by: SHA-256 of all that decides the model's bytes.

    `training` leaves out what decides their rounding alone, the processes and their threads.
    """

    fingerprint: str
    training: str
    world_size: int


def file_entries(folder: Path) -> dict[str, dict[str, Any]]:
    """{"relative/path": {"sha256": hex, "bytes": int}} of every file in `folder` but manifest.*."""
    return {
        name: {"sha256": sha256_of(path), "bytes": path.stat().st_size}
        for name, path in _files(folder).items()
        if name not in (MANIFEST, MANIFEST_HASH)
    }


def write_manifest(folder: Path, fields: dict[str, Any]) -> None:
    """Writes manifest.json and, last, manifest.sha256, which `sha256sum -c` reads."""
    content = (json.dumps(fields, indent=2, allow_nan=False) + "\n").encode()
    (folder / MANIFEST).write_bytes(content)
    (folder / MANIFEST_HASH).write_bytes(_hash_line(content))


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a published folder, after every file in it was seen to have its hash.

    Raises:
        MissingInputError: there is no folder, or no published run in it.
        DataError: a file is missing, or its bytes are not those that were published.
    """
    if not folder.is_dir():
        raise MissingInputError(f"{folder} is not a folder; give a published run's")
    if not (folder / MANIFEST).exists() and not (folder / MANIFEST_HASH).exists():
        raise MissingInputError(f"{folder} holds no {MANIFEST}; give a published run's folder")
    content = _content(folder, MANIFEST)
    if _content(folder, MANIFEST_HASH) != _hash_line(content):
        raise DataError(f"{folder}: {MANIFEST} does not have the hash in {MANIFEST_HASH}")
    try:
        manifest: dict[str, Any] = json.loads(content)
        if manifest["contract"] != CONTRACT:
            raise DataError(f"{folder}: contract {manifest['contract']} is not {CONTRACT}")
        # What is not in this list, which ends at the folder, is never opened.
        present = _files(folder)
        for name in manifest["files"]:
            if name not in present:
                raise DataError(f"{folder}: {name!r} is missing")
            published_bytes(folder, manifest, name)
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise DataError(f"{folder}: {MANIFEST} is malformed: {error!r}") from None
    return manifest


def published_bytes(folder: Path, manifest: dict[str, Any], name: str) -> bytes:
    """The content of a published file: bytes whose hash was seen to be the manifest's.

    Raises:
        DataError: the manifest does not list the file, or it is missing, or not what was published.
    """
    if name not in manifest["files"]:
        raise DataError(f"{folder}: {MANIFEST} does not list {name}")
    content = _content(folder, name)
    if hashlib.sha256(content).hexdigest() != manifest["files"][name]["sha256"]:
        raise DataError(f"{folder}: {name} is not the file that was published")
    return content


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash_line(content: bytes) -> bytes:
    """What manifest.sha256 holds of a manifest, to the last byte."""
    return f"{hashlib.sha256(content).hexdigest()}  {MANIFEST}\n".encode()


def _files(folder: Path) -> dict[str, Path]:
    """Every file in the folder by its relative path."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path for path in paths}


def _content(folder: Path, name: str) -> bytes:
    path = folder / name
    if not path.is_file():
        raise DataError(f"{folder}: {name!r} is missing")
    return path.read_bytes()
