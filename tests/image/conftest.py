"""Real containers from the image that `make image` builds."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, manifest_of

# The least that a container can be given. In /dev/shm, where the image has its temporary files, no
# model has room.
LOCKED_DOWN = (
    "--read-only",
    *("--network", "none"),
    *("--cap-drop", "ALL"),
    *("--security-opt", "no-new-privileges"),
    *("--shm-size", "4k"),
)
# Enough for the job; torch alone takes most of it.
LIMITS = ("--memory", "1g", "--memory-swap", "1g", "--cpus", "2", "--pids-limit", "128")
# A run of a few seconds.
SHORT = ("data.samples=20000", "train.epochs=1")

Done = subprocess.CompletedProcess[str]


def call(*command: str, cwd: Path = ROOT) -> Done:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def output_of(*command: str, cwd: Path = ROOT) -> str:
    done = call(*command, cwd=cwd)
    assert done.returncode == 0, f"{command}: {done.stderr[-4000:]}"
    return done.stdout.strip()


@dataclass(frozen=True)
class Image:
    tag: str
    facts: dict[str, Any]  # what `docker image inspect` says

    @property
    def config(self) -> dict[str, Any]:
        config: dict[str, Any] = self.facts["Config"]
        return config

    @property
    def environment(self) -> dict[str, str]:
        return dict(entry.split("=", 1) for entry in self.config["Env"])

    def run(
        self,
        *arguments: str,
        options: Sequence[str] = LOCKED_DOWN,
        folder: Path | None = None,
        user: int | None = None,
    ) -> Done:
        """`docker run IMAGE ARGUMENTS`, with `folder` at /artifacts."""
        options = [*options]
        if folder is not None:
            options += ["--volume", f"{folder}:/artifacts"]
        if user is not None:
            options += ["--user", f"{user}:{user}"]
        return call("docker", "run", "--rm", *options, self.tag, *arguments)

    def shell(self, command: str) -> str:
        """What a shell command in the image prints, run as root."""
        return output_of(
            *("docker", "run", "--rm", "--user", "0", "--entrypoint", "sh"),
            *(self.tag, "-c", command),
        )


def inspect(tag: str) -> Image:
    return Image(tag, json.loads(output_of("docker", "image", "inspect", tag))[0])


def engine_answers() -> bool:
    return shutil.which("docker") is not None and call("docker", "info").returncode == 0


@pytest.fixture(scope="session")
def image() -> Image:
    """The image as it is built from this checkout."""
    if not engine_answers():
        reason = "NO CONTAINER ENGINE ANSWERS (docker info): nothing of the image is tested"
        if "CI" in os.environ:
            pytest.fail(reason)
        pytest.skip(reason)
    output_of("make", "image")
    return inspect(output_of("make", "--no-print-directory", "-s", "image-name"))


def make_open_folder(path: Path) -> Path:
    """A new folder in which every user may write."""
    path.mkdir()
    path.chmod(0o777)
    return path


def empty(image: Image, folder: Path) -> None:
    """Removes what containers left, which belongs to other users than this one."""
    image.run(
        *("/artifacts", "-mindepth", "1", "-delete"),
        options=("--entrypoint", "find"),
        folder=folder,
        user=0,
    )


@pytest.fixture
def folder(image: Image, tmp_path: Path) -> Iterator[Path]:
    """A folder to mount at /artifacts."""
    path = make_open_folder(tmp_path / "artifacts")
    yield path
    empty(image, path)


@dataclass(frozen=True)
class Training:
    """A finished `docker run`, and the folder that was mounted."""

    user: int
    folder: Path
    done: Done

    @property
    def published(self) -> Path:
        """Where the last line of stdout says that it is, as it is called outside."""
        last = self.done.stdout.splitlines()[-1]
        return self.folder / Path(last).relative_to("/artifacts")

    @property
    def manifest(self) -> dict[str, Any]:
        return manifest_of(self.published)


# The image's own user, and one that the image has never heard of.
USERS = (10001, 54321)


@pytest.fixture(scope="session")
def trainings(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Training]]:
    """The same short run in a locked-down, limited container, once as each user."""
    made = []
    for user in USERS:
        folder = make_open_folder(tmp_path_factory.mktemp(f"user-{user}") / "artifacts")
        asked = None if user == USERS[0] else user
        options = [*LOCKED_DOWN, *LIMITS]
        done = image.run("train", *SHORT, options=options, folder=folder, user=asked)
        made.append(Training(user, folder, done))
    yield made
    for training in made:
        empty(image, training.folder)


@pytest.fixture(params=range(len(USERS)), ids=[f"user-{user}" for user in USERS])
def training(trainings: list[Training], request: pytest.FixtureRequest) -> Training:
    chosen: Training = trainings[request.param]
    return chosen
