import shutil
from pathlib import Path

import pytest


@pytest.fixture
def copy(published: Path, tmp_path: Path) -> Path:
    """The published run again, for a test to change."""
    return shutil.copytree(published, tmp_path / "of another name")
