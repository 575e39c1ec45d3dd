"""manifest.json: what a published folder holds, with the hash of every file in it."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from job.errors import DataError, MissingInputError

CONTRACT = 1
MANIFEST = "manifest.json"
MANIFEST_HASH = "manifest.sha256"


def file_entries(folder: Path) -> dict[str, dict[str, Any]]:
    """{"relative/path": {"sha256": hex, "bytes": int}} of every file in `folder` but manifest.*."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    return {
        name: {"sha256": sha256_of(path), "bytes": path.stat().st_size}
        for name, path in names.items()
        if name not in (MANIFEST, MANIFEST_HASH)
    }


def write_manifest(folder: Path, fields: dict[str, Any]) -> None:
    """Writes manifest.json and, last, manifest.sha256, which `sha256sum -c` reads."""
    content = (json.dumps(fields, indent=2, allow_nan=False) + "\n").encode()
    (folder / MANIFEST).write_bytes(content)
    line = f"{hashlib.sha256(content).hexdigest()}  {MANIFEST}\n"
    (folder / MANIFEST_HASH).write_text(line)


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
    words = _content(folder, MANIFEST_HASH).decode(errors="replace").split()
    if words != [hashlib.sha256(content).hexdigest(), MANIFEST]:
        raise DataError(f"{folder}: {MANIFEST} does not have the hash in {MANIFEST_HASH}")
    try:
        manifest: dict[str, Any] = json.loads(content)
        files = manifest["files"]
        if manifest["contract"] != CONTRACT:
            raise DataError(f"{folder}: contract {manifest['contract']} is not {CONTRACT}")
        for name, entry in files.items():
            if not _inside(name):
                raise DataError(f"{folder}: {MANIFEST} names {name!r}, which is not in the folder")
            if hashlib.sha256(_content(folder, name)).hexdigest() != entry["sha256"]:
                raise DataError(f"{folder}: {name} is not the file that was published")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{folder}: {MANIFEST} is malformed: {error!r}") from None
    return manifest


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _content(folder: Path, name: str) -> bytes:
    path = folder / name
    if not path.is_file():
        raise DataError(f"{folder}: {name} is missing")
    return path.read_bytes()


def _inside(name: str) -> bool:
    """Is this a relative path that stays in the folder?"""
    parts = name.split("/")
    return not os.path.isabs(name) and "" not in parts and ".." not in parts
