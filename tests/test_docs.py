"""What docs/ says is so: its commands are run, its tables are complete.

A block marked `sh` or `python` is run here as it stands, and so is docs/signing.md. Every other
command of a page must be named below: with the test that runs it, or with what it needs that is not
everywhere. Then what it names is there all the same: targets, files, flags.
"""

import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import job
from job.cli import _parse
from job.config import load_config
from job.errors import ExitCode

from .conftest import ROOT, SMALL, environment, run_job

DOCS = ROOT / "docs"
PAGES = [
    *sorted(page for page in DOCS.glob("*.md") if page.name != "decisions.md"),
    ROOT / "README.md",
]


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_names_is_there(page: Path) -> None:
    text = page.read_text()
    for name in re.findall(r"\]\((?!https?:)([\w./-]+)", text):
        assert (page.parent / name).exists(), name
    for name in re.findall(r"`((?:job|docs|tests|benchmarks|deploy|examples)/[\w./]*)`", text):
        assert (ROOT / name).exists(), name


def test_the_changelog_and_the_images_that_pages_name_are_of_this_version() -> None:
    newest = re.findall(r"^## (\S+) - ", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0]
    assert newest == job.__version__
    named = {tag for page in PAGES for tag in re.findall(r"\bjob:(\d[\w.-]*)", page.read_text())}
    assert named <= {f"{job.__version__}-{kind}" for kind in ("cpu", "cuda")}
    assert named


def test_every_page_can_be_reached_from_readme() -> None:
    seen: set[Path] = set()
    waiting = [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        seen.add(page)
        links = re.findall(r"\]\((?!https?:)([\w./-]+\.md)", page.read_text())
        waiting += {(page.parent / link).resolve() for link in links} - seen
    assert seen >= set(PAGES)


# Commands that are run here. ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def sandbox(output: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with job.yaml, two published runs in artifacts/, and rows.csv."""
    folder = tmp_path_factory.mktemp("docs")
    shutil.copy(ROOT / "job.yaml", folder)
    shutil.copytree(output, folder / "artifacts", symlinks=True)
    # The older is the first by its name too, as where the names are dates.
    done = run_job("train", *SMALL, "seed=1", "--run-id", "small-2", cwd=folder)
    assert done.returncode == 0, done.stderr
    x = np.load(folder / "artifacts" / "latest" / "golden" / "input.npy")
    header = ",".join(f"x{n}" for n in range(x.shape[1]))
    np.savetxt(folder / "rows.csv", x, delimiter=",", header=header, comments="")
    return folder


def bash(script: str, folder: Path) -> str:
    """What it prints, run where `python` is this one and knows `job`."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=environment(PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page, "sh")], ids=lambda page: page.name
)
def test_every_block_of_commands_works(page: Path, sandbox: Path) -> None:
    for block in blocks(page, "sh"):
        bash(block, sandbox)


def test_predictions_of_a_table_stand_beside_its_columns(sandbox: Path) -> None:
    bash(blocks(DOCS / "data.md", "sh")[0], sandbox)
    header = (sandbox / "answers.csv").read_text().splitlines()[0].replace('"', "")
    assert header == ",".join([*(f"x{n}" for n in range(10)), "y_predicted"])


@pytest.mark.parametrize("block", blocks(DOCS / "loading.md", "python"))
def test_every_way_to_load_gives_the_models_answers(block: str, sandbox: Path) -> None:
    check = "\nnp.save('loaded.npy', answers)"
    (sandbox / "load.py").write_text(block + check)
    bash("python -W ignore::DeprecationWarning load.py", sandbox)
    expected = np.load(sandbox / "artifacts" / "latest" / "golden" / "output.npy")
    answers = np.load(sandbox / "loaded.npy")
    (sandbox / "loaded.npy").unlink()
    assert answers.shape == expected.shape
    np.testing.assert_allclose(answers, expected, rtol=1e-5, atol=1e-5)


def test_the_configuration_of_a_table_is_valid(tmp_path: Path) -> None:
    (block,) = blocks(DOCS / "data.md", "yaml")
    (tmp_path / "job.yaml").write_text(block)
    config = load_config(str(tmp_path / "job.yaml"), [])
    assert (config.data.kind, config.data.path) == ("file", "rows.csv")


def test_a_model_is_signed_as_the_page_says(sandbox: Path) -> None:
    transcript, again = blocks(DOCS / "signing.md", "console")
    install, *rest = told(transcript)
    try:
        bash(install, sandbox)
    except AssertionError as error:
        if "CI" in os.environ:
            raise
        pytest.skip(str(error)[-500:])
    script = "\n".join([*rest, 'SIGNATURE="$(basename "$RUN").sig"', *told(again)])
    said = bash(script, sandbox)
    for line in transcript.splitlines():
        if not line.startswith("$ "):
            assert line in said


@pytest.mark.parametrize("arguments", ["--help", "check", "schema", "doctor"])
def test_what_is_named_in_a_sentence_works(arguments: str, sandbox: Path) -> None:
    assert bash(f"python -m job {arguments}", sandbox)


def test_every_test_that_is_named_is_there() -> None:
    code = "".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    there = set(re.findall(r"def (test_\w+)", code)) | {"test_data_set_0"}
    for page in sorted(DOCS.glob("*.md")):
        named = set(re.findall(r"\b(test_\w+)\b(?!\.py)", page.read_text()))
        assert named <= there, f"{page.name}: {sorted(named - there)}"


# Commands that are run elsewhere, or not everywhere. ----------------------------------------------


class RunBy(NamedTuple):
    """The file that runs it, and the words in there that do."""

    path: str
    words: str


class Needs(NamedTuple):
    """What it needs that is not everywhere; nothing runs it by itself."""

    what: str


CONTAINER = RunBy("tests/image/conftest.py", '"docker"')
CLUSTER = RunBy("tests/image/test_cluster.py", "kubectl")
HERE = RunBy("tests/test_docs.py", "test_what_is_named_in_a_sentence_works")

# By how a command starts; the longest that fits counts.
KNOWN: dict[str, RunBy | Needs] = {
    "make train": RunBy("tests/test_readme.py", '"make", "train"'),
    "make setup": RunBy("tests/test_readme.py", '"make", "train"'),
    "make test": RunBy(".ci/run", "make test"),
    "make lint": RunBy(".ci/run", "make lint"),
    "make k8s-validate": RunBy(".ci/run", "make k8s-validate"),
    "make image-cuda": Needs("gigabytes"),
    "make image-name": RunBy("tests/image/conftest.py", '"image-name"'),
    "make image": RunBy("tests/image/conftest.py", '"make", "image"'),
    "make sbom": RunBy("tests/image/test_contents.py", '"make", "sbom"'),
    "make run": Needs("a Docker engine"),
    "make shell": Needs("a Docker engine, a person"),
    "make size": Needs("a Docker engine"),
    "make run-gpu": Needs("an NVIDIA GPU"),
    "make test-in-image": Needs("half an hour"),
    "make test-slow": Needs("hours"),
    "make bench": Needs("an hour, other libraries"),
    "make k8s-smoke": Needs("a cluster"),
    "docker": CONTAINER,
    "docker run --gpus": Needs("an NVIDIA GPU, or to have none"),
    "docker run --user": RunBy("tests/image/conftest.py", '"--user"'),
    "mkdir -p artifacts": HERE,
    "docker network create": RunBy("tests/image/test_ranks.py", '"network"'),
    "sudo nvidia-ctk": Needs("an NVIDIA GPU"),
    "kubectl": CLUSTER,
    "cron -L 4": RunBy("tests/image/test_cron.py", "cron"),
    "torchrun": RunBy("tests/test_distributed.py", "torch.distributed.run"),
    "python -m job": RunBy("tests/test_readme.py", '"make", "train"'),
    "python -m job --help": HERE,
    "python -m job check": HERE,
    "python -m job schema": HERE,
    "python -m job doctor": HERE,
    "python -m job train": RunBy("tests/conftest.py", '"train"'),
    "python -m job verify": RunBy("tests/test_readme.py", '"verify"'),
    "python -m job verify DIR --self-test": RunBy("tests/verify/test_mutants.py", '"--self-test"'),
    "python -m job verify artifacts/latest --self-test": RunBy(
        "tests/verify/test_mutants.py", '"--self-test"'
    ),
    "python -m pytest": RunBy("tests/verify/test_exports.py", "random_model"),
    "python -m benchmarks.optimizers": RunBy("tests/test_benchmarks.py", "optimizers"),
    "python -m benchmarks.tables": Needs("scikit-learn"),
    "python -m benchmarks.ranks": Needs("minutes on a machine without other work"),
    "python -m benchmarks.threads": Needs("minutes on a machine without other work"),
    "python -m benchmarks.memory": Needs("minutes"),
    "python -m benchmarks.outside": Needs("minutes on a machine without other work"),
    "python -m benchmarks.cuda": Needs("a GPU"),
    "python3 requirements/install.py": RunBy("Makefile", "requirements/install.py"),
    "python -m benchmarks.verifiers": RunBy("tests/verify/test_against_others.py", "verifiers"),
    "pip install -r benchmarks/requirements-verifiers.txt": Needs("other verifiers"),
    "pip install pyarrow": RunBy("requirements/cpu.txt", "pyarrow=="),
    "pip install torch onnx onnxruntime": Needs("gigabytes"),
    "sha256sum --check": RunBy("docs/recipes.md", "sha256sum --check manifest.sha256"),
}
PROGRAMS = r"(?:make|docker|kubectl|torchrun|python3?|pip|npm|node|cron|sudo|sha256sum|openssl) "


def told(block: str) -> list[str]:
    """The commands of a transcript: after its prompts where it has any, else all lines."""
    joined = block.replace("\\\n", " ")
    lines = [line for line in joined.splitlines() if line.strip()]
    prompts = [line[2:] for line in lines if line.startswith("$ ")]
    return [re.sub(r" {2,}#.*", "", line) for line in prompts or lines]


def commands(page: Path) -> Iterator[str]:
    """Every command of the page that is not run here as it stands."""
    for block in [] if page.name == "signing.md" else blocks(page, "console"):
        for line in told(block):
            plain = re.sub(r"^(?:\w+=\S+ )+", "", line.removesuffix(" &"))
            plain = re.sub(r"^\S*/bin/(?=python|pip)", "", plain)
            if plain != "echo $?":
                yield " ".join(plain.split())
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for span in re.findall(r"`([^`\n]+)`", prose):
        plain = re.sub(r"^(?:\w+=\S+ )+", "", span)
        if re.match(PROGRAMS, plain):
            yield plain


def known(command: str) -> str | None:
    fitting = [start for start in KNOWN if f"{command} ".startswith(f"{start} ")]
    return max(fitting, key=len, default=None)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_is_run_or_said_to_need_what_is_not_here(page: Path) -> None:
    assert [command for command in commands(page) if known(command) is None] == []


def test_whatever_is_said_to_run_a_command_does() -> None:
    for command, way in KNOWN.items():
        if isinstance(way, RunBy):
            assert way.words in (ROOT / way.path).read_text(), command
    used = {known(command) for page in PAGES for command in commands(page)}
    assert set(KNOWN) - used == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_targets_files_modules_and_flags_of_every_command_are_there(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for command in commands(page):
        words = shlex.split(command)
        if words[0] == "make":
            for target in words[1:]:
                assert "=" in target or re.search(rf"^{target}:", makefile, re.MULTILINE), command
        if (at := command.find("-m job")) >= 0:
            arguments = shlex.split(command[at:].removeprefix("-m job"))
            if arguments and arguments != ["--help"]:
                _parse(arguments)
        for module in re.findall(r"-m (benchmarks\.\w+)", command):
            assert (ROOT / (module.replace(".", "/") + ".py")).exists(), command
        for path in re.findall(r"\b(?:requirements|benchmarks|tests|deploy)/[\w./-]+", command):
            assert (ROOT / path).exists(), command
