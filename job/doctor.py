"""What this machine or container offers to the job, and what would keep it from running."""

import ctypes
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from job.config import Config
from job.device import choose_device, cpu_limit, memory_limit
from job.errors import JobError
from job.identity import versions
from job.publish import prepare_output

GIB = 2**30

CGROUPS = Path("/sys/fs/cgroup")
DRIVER = Path("/proc/driver/nvidia/version")
LIBCUDA = "libcuda.so.1"
TOOLKIT = (
    "nvidia-container-toolkit, without which docker refuses --gpus all (`could not select device "
    "driver`): install it, run `nvidia-ctk runtime configure --runtime=docker`, restart docker"
)


def examine(config: Config) -> Iterator[tuple[str, str | JobError]]:
    """(what, finding), one at a time; a finding that is an error is what `train` would end with."""
    yield from versions().items()
    yield "system", f"{platform.system()} {platform.release()} {platform.machine()}"
    yield "user", f"uid {os.getuid()}, gid {os.getgid()}"
    yield "cpu limit", f"{cpu_limit():g} of {os.cpu_count()} processors, {_cgroup()}"
    yield "memory limit", f"{memory_limit() / GIB:.1f} GiB"
    yield "shared memory", f"/dev/shm, {_free('/dev/shm')}"
    yield "writable", _writable()
    yield "temporary files", _temporary_files()
    yield "NVIDIA driver", _driver()
    import torch

    yield "CUDA in torch", torch.version.cuda or "none: this is torch's CPU build"
    for what, find in (("device", _device), ("output", _output)):
        try:
            yield what, find(config)
        except JobError as error:
            yield what, error


def _cgroup() -> str:
    if (CGROUPS / "cgroup.controllers").exists():
        return "cgroup v2"
    return "cgroup v1" if (CGROUPS / "cpu").exists() else "no cgroup to be seen"


def _writable() -> str:
    places = dict.fromkeys(["/", os.path.expanduser("~"), "/tmp", "/var/tmp", "/dev/shm"])
    return ", ".join(place for place in places if os.access(place, os.W_OK)) or "no usual folder"


def _driver() -> str:
    """The driver and the newest CUDA that it serves, or what is missing and how to get it.

    The kernel's own word is there in a container without NVIDIA's toolkit too; its library is not.
    """
    try:
        driver = " ".join(DRIVER.read_text().splitlines()[0].split())
    except OSError:
        driver = ""
    cuda = _cuda_of_driver()
    if cuda is not None:
        return f"{driver or 'loaded'}; serves CUDA up to {cuda}"
    if not driver:
        return f"none is loaded; for a GPU install one on the host, and for containers {TOOLKIT}"
    return (
        f"{driver}, but its library {LIBCUDA} is not to be found here; in a container: {TOOLKIT}, "
        f"then start it with --gpus all, and NVIDIA_DRIVER_CAPABILITIES with compute in it"
    )


def _cuda_of_driver() -> str | None:
    version = ctypes.c_int()
    try:
        if ctypes.CDLL(LIBCUDA).cuDriverGetVersion(ctypes.byref(version)) != 0:
            return None
    except OSError:
        return None
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def _device(config: Config) -> str:
    device = choose_device(config)
    return (
        f"{device.type} ({device.name}; {device.reason}), "
        f"{device.threads} CPU thread{'s' * (device.threads > 1)} ({device.threads_reason})"
    )


def _output(config: Config) -> str:
    output = Path(config.output.dir)
    prepare_output(output)
    return f"{output} is writable, {_free(str(output))}"


def _temporary_files() -> str:
    try:
        with tempfile.TemporaryFile():
            return f"{tempfile.gettempdir()}, {_free(tempfile.gettempdir())}"
    except OSError as error:
        return f"cannot be written ({error.strerror})"


def _free(folder: str) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / GIB:.1f} GiB free"
    except OSError as error:
        return f"not there ({error.strerror})"
