"""What the job runs on: the device with the reason for it, CPU threads, memory, determinism."""

import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from job.config import Config
from job.errors import ConfigError, DeviceError
from job.ranks import Ranks

if TYPE_CHECKING:
    import torch

# Below this width a layer's matrix product is too small to be worth handing to a second thread.
WIDE = 512


@dataclass(frozen=True)
class Device:
    """A device that was seen to work, and why it was chosen."""

    type: str  # "cpu" or "cuda"
    index: int
    name: str
    reason: str
    threads: int
    threads_reason: str
    ranks: Ranks = field(default_factory=Ranks)  # the processes, each on such a device

    @property
    def torch(self) -> "torch.device":
        """The torch.device that tensors are moved to."""
        import torch

        return torch.device("cpu") if self.type == "cpu" else torch.device("cuda", self.index)


def choose_device(config: Config, ranks: Ranks | None = None) -> Device:
    """The device that `config.device` asks for, after one real operation on it; of several
    processes on one machine each has a CUDA device of its own, or, where there are too few for
    "auto", all take the CPU.

    Raises:
        ConfigError: all processes of one machine would have one CUDA device.
        DeviceError: CUDA was asked for by name and does not work here.
    """
    ranks = ranks or Ranks()
    if ":" in config.device and ranks.local_size > 1:
        raise ConfigError(
            f"device: {config.device} is one device for {ranks.local_size} processes; say cuda"
        )
    threads = (*choose_threads(config, ranks.local_size), ranks)
    if config.device == "cpu":
        return Device("cpu", 0, cpu_name(), "asked for", *threads)
    index = int(config.device.partition(":")[2] or ranks.local_rank)
    trouble = cuda_trouble(index)
    if trouble is None and config.device == "auto" and ranks.local_size > 1:
        trouble = cuda_trouble(ranks.local_size - 1)
    if trouble is None:
        import torch

        reason = "CUDA works here" if config.device == "auto" else "asked for"
        name = torch.cuda.get_device_name(index)
        return Device("cuda", index, name, reason, *threads)
    if config.device == "auto":
        return Device("cpu", 0, cpu_name(), f"no CUDA: {trouble}", *threads)
    raise DeviceError(
        f"device {config.device} is not available: {trouble}; set device: auto or cpu"
    )


def cuda_trouble(index: int) -> str | None:
    """None if CUDA device `index` computes; otherwise why it does not.

    `is_available()` is not believed: a driver that is too old or a GPU that this build has no
    kernels for is found by running one operation.
    """
    # cuBLAS is deterministic only with a fixed workspace, and reads this at its first operation.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import torch

    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        said = " ".join(str(caught[-1].message).split()) if caught else "no CUDA device is visible"
        return said[:300]
    if index >= count:
        return f"there is no CUDA device {index}, only {count}"
    try:
        ones = torch.ones(8, device=torch.device("cuda", index))
        if float((ones @ ones).item()) == 8.0:
            return None
        return "a test operation gave a wrong result"
    except RuntimeError as error:
        return f"a test operation failed: {str(error).splitlines()[0]}"


def choose_threads(config: Config, processes: int = 1) -> tuple[int, str]:
    """CPU threads and the reason.

    The rule: what the config says; else one thread while every hidden layer is narrower than
    `WIDE`; else the container's CPU limit, divided by the processes on this machine, rounded down.
    """
    if config.threads != "auto":
        return config.threads, "asked for"
    width = max(config.model.hidden, default=0)
    if width < WIDE:
        return 1, f"the widest layer has {width} units, fewer than {WIDE}"
    limit = cpu_limit()
    shared = f", for {processes} processes" if processes > 1 else ""
    return max(1, int(limit / processes)), f"the CPU limit is {limit:g}{shared}"


def cpu_limit() -> float:
    """CPUs that this process may use: the smaller of its affinity and its cgroups' quota."""
    limit = float(len(os.sched_getaffinity(0)))
    for group in _cgroups("cpu"):
        quota, period = [*_words(group / "cpu.max"), "", ""][:2]
        if not quota:  # cgroup v1
            quota = "".join(_words(group / "cpu.cfs_quota_us"))
            period = "".join(_words(group / "cpu.cfs_period_us"))
        if quota.isdigit() and period.isdigit() and int(period) > 0:
            limit = min(limit, int(quota) / int(period))
    return limit


def memory_limit() -> int:
    """Bytes that this process may use: the smaller of the machine's memory and its cgroups'."""
    limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for group in _cgroups("memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            words = _words(group / name)
            if words and words[0].isdigit():
                limit = min(limit, int(words[0]))
    return limit


def _cgroups(controller: str) -> Iterator[Path]:
    """This process's folders under /sys/fs/cgroup, from its own up to the root, v1 and v2."""
    root = Path("/sys/fs/cgroup")
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = root / controller if controllers else root
        group = base / path.strip("/")
        # In a container the path is the host's and is not there: its own group is then the root.
        while group != root and base in (group, *group.parents):
            yield group
            group = group.parent
    yield root


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def cpu_name() -> str:
    """The processor's model name, or its architecture where that is not told."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return os.uname().machine


def settle_threads() -> None:
    """To be called before NumPy and torch are imported; what the environment says stays.

    torch's threads wait for work some tenths of a millisecond and then sleep, which otherwise they
    do after several. Where other processes want the same CPUs, a thread that waits takes its time
    from the one that it waits for: two threads were then up to 30 times as slow as one, and with
    this 5 times (docs/performance.md).

    NumPy's products take one thread: how many share one shows in its last bits, and data are not
    to follow the number of CPUs.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def prepare_torch(device: Device) -> None:
    """Sets what makes equal runs give equal bytes: threads and deterministic algorithms."""
    import torch

    torch.set_num_threads(device.threads)
    if device.type == "cuda":
        torch.cuda.set_device(device.index)
    # As use_deterministic_algorithms(True), which would import the compiler first: 1 s or more.
    torch.set_deterministic_debug_mode("error")
    # That would fill what no operation has written yet: of a step on CUDA a third of the kernels.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    torch.set_float32_matmul_precision("highest")
