"""Two containers on one network train as one."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex

import pytest
import yaml

from tests.conftest import ROOT, eventually, manifest_of

from .conftest import LOCKED_DOWN, Image, call, output_of

OVERLAY = ROOT / "deploy" / "kubernetes" / "overlays" / "distributed" / "kustomization.yaml"


@pytest.fixture
def network() -> Iterator[str]:
    name = f"job-{token_hex(4)}"
    output_of("docker", "network", "create", "--internal", name)
    yield name
    call("docker", "network", "rm", "--force", name)


def command_of(rank: int, first: str) -> list[str]:
    """What the overlay runs in the pod of that index, where the first is called `first`."""
    [job] = [
        p["patch"] for p in yaml.safe_load(OVERLAY.read_text())["patches"] if "Job" in p["patch"]
    ]
    [container] = yaml.safe_load(job)["spec"]["template"]["spec"]["containers"]
    return [
        argument.replace("$(JOB_COMPLETION_INDEX)", str(rank)).replace("job-0.job", first)
        for argument in (*container["command"], *container["args"])
    ]


class Pair:
    """Two containers, each with a rank of one run; only the first has an output folder."""

    def __init__(self, image: Image, network: str, folder: Path, *overrides: str) -> None:
        self.names = [f"rank-{rank}-{token_hex(4)}" for rank in (0, 1)]
        self.folder = folder.parent
        self.processes = []
        mount = ("--volume", f"{folder}:/artifacts", "--env", "JOB_RUN_ID=two")
        log = ("--env", "JOB_TERMINATION_LOG=/artifacts/termination")
        for rank, name in enumerate(self.names):
            program, *arguments = command_of(rank, self.names[0])
            command = [
                *("docker", "run", "--rm", "--name", name, "--hostname", name),
                *("--network", network, "--read-only", "--cap-drop", "ALL", "--tmpfs", "/tmp"),
                *(() if rank else (*mount, *log)),
                *("--entrypoint", program, image.tag, *arguments, *overrides),
            ]
            with open(self.folder / f"out-{rank}", "w") as out, open(self.err(rank), "w") as err:
                self.processes.append(subprocess.Popen(command, stdout=out, stderr=err))

    def err(self, rank: int) -> Path:
        return self.folder / f"err-{rank}"

    def training(self) -> bool:
        """Has an epoch of this attempt ended?"""
        return '"event": "epoch"' in self.err(0).read_text()

    def end(self, timeout: float) -> list[tuple[int, str]]:
        """Each one's exit code and stdout."""
        codes = [process.wait(timeout) for process in self.processes]
        return [(code, (self.folder / f"out-{r}").read_text()) for r, code in enumerate(codes)]


@contextmanager
def pair(image: Image, network: str, folder: Path, *overrides: str) -> Iterator[Pair]:
    """Both under way; gone afterwards."""
    started = Pair(image, network, folder, *overrides)
    try:
        yield started
    finally:
        call("docker", "rm", "--force", *started.names)
        for process in started.processes:
            process.wait()


def test_a_lost_or_stopped_container_ends_both_and_the_run_resumes(
    image: Image, network: str, folder: Path
) -> None:
    """A node that is gone, then a pod that is evicted: each time the one that holds nothing.

    By the overlay's own command; what only the first mounts, the second does not miss.
    """
    keys = ("data.samples=200000", "train.epochs=100")
    for how, code in ((("kill",), 74), (("stop", "--time", "120"), 75)):
        with pair(image, network, folder, *keys) as both:
            eventually(both.training, 300)
            output_of("docker", *how, both.names[1])
            [(first, _), _] = both.end(180)  # by its connection: silence would take 600
        assert first == 1  # torchrun's own; the log tells the job's
        assert json.loads((folder / "termination").read_text())["code"] == code
        image.run("/artifacts/termination", options=("--entrypoint", "rm"), folder=folder, user=0)
    with pair(image, network, folder, *keys) as both:
        assert both.end(600) == [(0, "/artifacts/runs/two\n"), (0, "")], both.err(0).read_text()
    manifest = manifest_of(folder / "runs" / "two")
    assert manifest["training"]["resumed"] == 2
    assert manifest["device"]["world_size"] == 2
    assert sum(manifest["training"]["rows_by_rank"]) == 160000
    assert len(manifest["training"]["rows_by_rank"]) == 2
    done = image.run("verify", "/artifacts/runs/two", options=LOCKED_DOWN, folder=folder)
    assert done.returncode == 0, done.stderr
