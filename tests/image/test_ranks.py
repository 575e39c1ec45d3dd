"""Two containers on one network train as one."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from secrets import token_hex

import pytest

from tests.conftest import ROOT

from .conftest import LOCKED_DOWN, SHORT, Image, call, output_of

OVERLAY = ROOT / "deploy" / "kubernetes" / "overlays" / "distributed" / "kustomization.yaml"


@pytest.fixture
def network() -> Iterator[str]:
    name = f"job-{token_hex(4)}"
    output_of("docker", "network", "create", "--internal", name)
    yield name
    call("docker", "network", "rm", "--force", name)


def test_two_containers_are_two_ranks_of_one_run(image: Image, network: str, folder: Path) -> None:
    """As the overlay starts them; what only the first mounts, the second does not miss."""
    first, second = (f"rank-{n}-{token_hex(4)}" for n in (0, 1))

    def command(name: str, rank: int, *options: str) -> list[str]:
        return [
            *("docker", "run", "--rm", "--name", name, "--hostname", name),
            *("--network", network, "--read-only", "--cap-drop", "ALL", "--tmpfs", "/tmp"),
            *options,
            *("--entrypoint", "python", image.tag, "-m", "torch.distributed.run"),
            *("--nnodes=2", "--nproc-per-node=1", f"--node-rank={rank}"),
            *(f"--master-addr={first}", "--master-port=29500"),
            *("-m", "job", "train", *SHORT, "device=cpu"),
        ]

    mount = ("--volume", f"{folder}:/artifacts", "--env", "JOB_RUN_ID=two")
    containers = [
        subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for line in (command(first, 0, *mount), command(second, 1))
    ]
    try:
        said = [container.communicate(timeout=300) for container in containers]
    finally:
        call("docker", "rm", "--force", first, second)
    assert [container.returncode for container in containers] == [0, 0], said
    assert said[0][0] == "/artifacts/runs/two\n"
    assert said[1][0] == ""
    manifest = json.loads((folder / "runs" / "two" / "manifest.json").read_text())
    assert manifest["device"]["world_size"] == 2
    assert sum(manifest["training"]["rows_by_rank"]) == 16000
    assert len(manifest["training"]["rows_by_rank"]) == 2
    done = image.run("verify", "/artifacts/runs/two", options=LOCKED_DOWN, folder=folder)
    assert done.returncode == 0, done.stderr


def test_the_overlay_starts_them_alike() -> None:
    text = OVERLAY.read_text()
    for option in ("--nnodes=2", "--nproc-per-node=1", "--master-port=29500", "--node-rank="):
        assert option in text
