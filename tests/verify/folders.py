"""Published folders in which something was changed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from job.manifest import file_entries, write_manifest


def rehash(folder: Path, edit: Callable[[dict[str, Any]], object] = lambda manifest: None) -> None:
    """Makes the manifest fit what now lies in the folder, then changes it."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = file_entries(folder)
    edit(manifest)
    write_manifest(folder, manifest)
