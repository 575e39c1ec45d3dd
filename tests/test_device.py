"""Device, threads and memory: what was chosen, and why."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from job import device as devices
from job.config import load_config
from job.device import (
    WIDE,
    choose_device,
    choose_threads,
    cpu_limit,
    memory_limit,
    prepare_torch,
    settle_threads,
)
from job.errors import ConfigError, DeviceError
from job.ranks import Ranks

from .conftest import ROOT, environment


def test_cpu_is_taken_when_asked_for() -> None:
    device = choose_device(load_config(None, ["device=cpu"]))
    assert (device.type, device.reason) == ("cpu", "asked for")
    assert device.name
    assert device.torch == torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA works here: see the test below")
def test_without_cuda_auto_takes_the_cpu_and_says_why() -> None:
    device = choose_device(load_config(None))
    assert device.type == "cpu"
    assert device.reason.startswith("no CUDA: ")


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA works here: see the test below")
@pytest.mark.parametrize("asked", ["cuda", "cuda:1"])
def test_without_cuda_asking_for_it_is_an_error_that_says_what_to_do(asked: str) -> None:
    with pytest.raises(DeviceError, match=f"device {asked} is not available: .*; set device: auto"):
        choose_device(load_config(None, [f"device={asked}"]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_with_cuda_auto_takes_it_and_names_it() -> None:
    device = choose_device(load_config(None))
    assert (device.type, device.reason) == ("cuda", "CUDA works here")
    assert device.name == torch.cuda.get_device_name(0)
    with pytest.raises(DeviceError, match="there is no CUDA device 99"):
        choose_device(load_config(None, ["device=cuda:99"]))


def test_narrow_models_take_one_thread_and_wide_ones_the_limit() -> None:
    narrow = choose_threads(load_config(None, [f"model.hidden=[{WIDE - 1}, 3]"]))
    assert narrow == (1, f"the widest layer has {WIDE - 1} units, fewer than {WIDE}")
    wide, reason = choose_threads(load_config(None, [f"model.hidden=[3, {WIDE}]"]))
    assert wide == max(1, int(cpu_limit()))
    assert "CPU limit" in reason
    assert choose_threads(load_config(None, ["threads=3"])) == (3, "asked for")
    assert choose_threads(load_config(None, ["model.hidden=[]"]))[0] == 1


def test_the_cpu_limit_follows_the_affinity() -> None:
    one = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, [{one}])\n"
    code += "from job.device import cpu_limit; print(cpu_limit())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) <= 1.0


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"cpu.max": "50000 100000"}, 0.5),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu.cfs_quota_us": "20000", "cpu.cfs_period_us": "100000"}, 0.2),
        ({"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"}, None),
        ({}, None),
    ],
)
def test_the_cpu_limit_follows_the_cgroup(
    files: dict[str, str], limit: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(devices, "_cgroups", lambda controller: iter([tmp_path]))
    assert cpu_limit() == (limit or len(os.sched_getaffinity(0)))


@pytest.mark.parametrize("name", ["memory.max", "memory.limit_in_bytes"])
def test_the_memory_limit_follows_the_cgroup(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "_cgroups", lambda controller: iter([tmp_path]))
    machine = memory_limit()
    (tmp_path / name).write_text("1048576\n")
    assert memory_limit() == 1048576
    (tmp_path / name).write_text("max\n")
    assert memory_limit() == machine


def test_one_device_is_not_for_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "cuda_trouble", lambda index: "only one" if index else None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    with pytest.raises(ConfigError, match="cuda:1 is one device for 2 processes"):
        choose_device(load_config(None, ["device=cuda:1"]), Ranks(0, 2, 0, 2))
    for rank in (0, 1):  # both the same, where there is a device for one of them
        assert choose_device(load_config(None), Ranks(rank, 2, rank, 2)).type == "cpu"
    assert choose_device(load_config(None), Ranks(1, 2, 0, 1)).type == "cuda"


def test_only_deterministic_algorithms_are_let_run() -> None:
    torch.use_deterministic_algorithms(False)
    prepare_torch(choose_device(load_config(None)))
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.benchmark
    assert torch.get_float32_matmul_precision() == "highest"
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_threads_that_wait_sleep_soon_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def told(**environment: str) -> dict[str, str]:
        monkeypatch.setattr(os, "environ", environment)
        settle_threads()
        assert os.environ["OPENBLAS_NUM_THREADS"] == environment.get("OPENBLAS_NUM_THREADS", "1")
        return {name: value for name, value in os.environ.items() if name.startswith("GOMP_")}

    assert told() == {"GOMP_SPINCOUNT": "10000"}
    assert told(GOMP_SPINCOUNT="7") == {"GOMP_SPINCOUNT": "7"}
    assert told(OMP_WAIT_POLICY="ACTIVE", OPENBLAS_NUM_THREADS="2") == {}


DATA = """
from job.device import settle_threads
settle_threads()
import hashlib
from job.config import load_config
from job.data import load_data
for kind in ("teacher", "gaussians"):
    keys = [f"data.kind={kind}", "data.samples=100003", "data.features=23"]
    if kind == "gaussians":
        keys += ["data.classes=7", "train.loss=cross_entropy"]
    config = load_config(None, keys)
    data = load_data(config.data, 0, 2**40)
    for split in (data.training, data.validation, data.test):
        for values in (split.x, split.y, split.truth):
            print(hashlib.sha256(values.tobytes()).hexdigest())
"""


def test_data_are_the_same_on_any_number_of_cpus() -> None:
    """How many threads share a product of NumPy's shows in the gaussians' truth, in last bits."""
    cpus = sorted(os.sched_getaffinity(0))
    said = [
        subprocess.check_output(
            ["taskset", "-c", ",".join(map(str, some)), sys.executable, "-c", DATA],
            cwd=ROOT,
            env=environment(),
            text=True,
        )
        for some in (cpus[:1], cpus)
    ]
    assert said[0] == said[1]
    assert len(said[0].split()) == 2 * 9
