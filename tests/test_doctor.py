"""doctor says what there is, and ends as train would."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from job import doctor
from job.errors import ExitCode

from .conftest import Job


def test_it_says_what_this_machine_offers_and_leaves_nothing(job: Job, tmp_path: Path) -> None:
    done = job("doctor", "device=cpu", "--output", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    found = dict(line.split(":", 1) for line in done.stdout.splitlines())
    for what in ("python", "torch", "onnxruntime", "user", "memory limit", "shared memory"):
        assert found[what].strip()
    assert re.search(r"of \d+ processors, (cgroup v[12]|no cgroup)", found["cpu limit"])
    assert "/tmp" in found["writable"]
    assert found["device"].strip().startswith("cpu (")
    assert "is writable" in found["output"]
    assert "GiB free" in found["temporary files"]
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA works here")
def test_it_ends_as_train_would_and_still_says_the_rest(job: Job, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = job("doctor", "device=cuda", "--output", str(tmp_path / "file"))
    assert done.returncode == ExitCode.UNAVAILABLE
    assert "device:            NOT USABLE: device cuda is not available" in done.stdout
    assert "output:            NOT USABLE: the output folder" in done.stdout


def test_an_output_that_cannot_be_used_is_73_and_may_have_any_name(job: Job) -> None:
    done = job("doctor", "device=cpu", "--output", "/proc/\N{CRAB}")
    assert done.returncode == ExitCode.CANNOT_CREATE
    assert "\N{CRAB}" in done.stdout


NVRM = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  Tue Sep 23\nGCC version: 12\n"


@pytest.mark.parametrize(
    ("module", "cuda", "said"),
    [
        (NVRM, "13.0", "580.95.05 Tue Sep 23; serves CUDA up to 13.0"),
        ("", "12.4", "loaded; serves CUDA up to 12.4"),  # as under WSL, which has no such file
        (NVRM, None, "--gpus all, and NVIDIA_DRIVER_CAPABILITIES"),
        (NVRM, None, "580.95.05 Tue Sep 23, but its library libcuda.so.1 is not to be found"),
        (NVRM, None, "install it, run `nvidia-ctk runtime configure --runtime=docker`"),
        ("", None, "none is loaded"),
        ("", None, "nvidia-container-toolkit, without which docker refuses --gpus all"),
    ],
)
def test_what_the_driver_lacks_is_said_with_what_to_install(
    module: str, cuda: str | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if module:
        (tmp_path / "version").write_text(module)
    monkeypatch.setattr(doctor, "DRIVER", tmp_path / "version")
    monkeypatch.setattr(doctor, "_cuda_of_driver", lambda: cuda)
    assert said in doctor._driver()


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler to make a driver's library with")
@pytest.mark.parametrize(("answer", "cuda"), [(0, "12.4"), (3, None)])
def test_the_driver_is_asked_for_its_newest_cuda(
    answer: int, cuda: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, library = tmp_path / "cuda.c", tmp_path / f"libcuda-{answer}.so"
    source.write_text(f"int cuDriverGetVersion(int *v) {{ *v = 12040; return {answer}; }}")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    monkeypatch.setattr(doctor, "LIBCUDA", str(library))
    assert doctor._cuda_of_driver() == cuda


def test_a_library_that_is_not_there_is_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LIBCUDA", "libcuda-nowhere.so.1")
    assert doctor._cuda_of_driver() is None


@pytest.mark.parametrize(
    ("entry", "said"),
    [("cgroup.controllers", "cgroup v2"), ("cpu", "cgroup v1"), (None, "no cgroup to be seen")],
)
def test_it_names_the_version_of_the_cgroups(
    entry: str | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if entry:
        (tmp_path / entry).touch()
    monkeypatch.setattr(doctor, "CGROUPS", tmp_path)
    assert doctor._cgroup() == said
