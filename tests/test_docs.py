"""What docs/ says is so: its commands are run, its tables are complete."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from job.errors import ExitCode

from .conftest import ROOT, SMALL, run_job

DOCS = ROOT / "docs"


def test_the_reference_of_job_yaml_is_made_from_the_schema() -> None:
    reference = runpy.run_path(str(DOCS / "configuration.py"))["reference"]
    schema = json.loads(run_job("schema").stdout)
    assert (DOCS / "configuration.md").read_text() == reference(schema) + "\n"


def test_every_exit_code_has_its_advice() -> None:
    rows = re.findall(r"^\| (\d+) \|", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)
    assert [int(code) for code in rows] == [int(code) for code in ExitCode]


def test_every_published_file_is_explained(published: Path) -> None:
    text = (DOCS / "artifacts.md").read_text()
    for path in published.iterdir():
        assert f"`{path.name}`" in text or f"`{path.name}/" in text, path.name


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two published runs in artifacts/."""
    folder = tmp_path_factory.mktemp("recipes")
    shutil.copy(ROOT / "job.yaml", folder)
    for seed in (0, 1):
        done = run_job("train", *SMALL, f"seed={seed}", cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder


def test_every_recipe_works(sandbox: Path) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", (DOCS / "recipes.md").read_text(), re.DOTALL)
    assert len(blocks) >= 8
    kept = {k: v for k, v in os.environ.items() if not k.startswith("JOB")}
    path = f"{Path(sys.executable).parent}:{kept['PATH']}"
    for block in blocks:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            cwd=sandbox,
            env={**kept, "PATH": path, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_every_file_that_a_page_names_is_there(page: Path) -> None:
    text = page.read_text()
    for name in re.findall(r"\]\((?!https?:)([\w./-]+)", text):
        assert (DOCS / name).exists(), name
    for name in re.findall(r"`((?:job|docs|tests|benchmarks|deploy|examples)/[\w./]*\w)`", text):
        assert (ROOT / name).exists(), name
