"""What this machine or container offers to the job, and what would keep it from running."""

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


def examine(config: Config) -> Iterator[tuple[str, str | JobError]]:
    """(what, finding), one at a time; a finding that is an error is what `train` would end with."""
    yield from versions().items()
    yield "system", f"{platform.system()} {platform.release()} {platform.machine()}"
    yield "user", f"uid {os.getuid()}, gid {os.getgid()}"
    yield "cpu limit", f"{cpu_limit():g} of {os.cpu_count()} processors"
    yield "memory limit", f"{memory_limit() / GIB:.1f} GiB"
    yield "shared memory", _free("/dev/shm")
    yield "temporary files", _temporary_files()
    yield "NVIDIA driver", _driver()
    yield "CUDA in torch", _cuda_of_torch()
    yield "device", _device(config)
    yield "output", _output(config)


def _driver() -> str:
    """The kernel's own word; it is also there in a container without NVIDIA's toolkit."""
    try:
        line = Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    except OSError:
        return "none is loaded"
    if not Path("/dev/nvidiactl").exists():
        return (
            f"{' '.join(line.split())}, but no device is passed into this container; install "
            f"NVIDIA's container toolkit and use --gpus all"
        )
    return " ".join(line.split())


def _cuda_of_torch() -> str:
    import torch

    return torch.version.cuda or "none: this is torch's CPU build"


def _device(config: Config) -> str | JobError:
    try:
        device = choose_device(config)
    except JobError as error:
        return error
    return (
        f"{device.type} ({device.name}; {device.reason}), "
        f"{device.threads} CPU threads ({device.threads_reason})"
    )


def _output(config: Config) -> str | JobError:
    output = Path(config.output.dir)
    try:
        prepare_output(output, config.output.keep)
    except JobError as error:
        return error
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
