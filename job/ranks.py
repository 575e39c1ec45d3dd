"""The processes that train together, as torchrun starts them. A single one never touches
torch.distributed.

Each takes its share of the rows of every batch; the gradients are added up, and all make the same
update. The first alone, rank 0, claims the run, writes, exports, verifies and publishes.

Shapes: B rows of a batch.
"""

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from job import interrupt
from job.errors import ConfigError, ProcessLost

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

T = TypeVar("T")

# A process that is gone is noticed by its connection; this is for one that is silent. The others
# wait as long while the first evaluates, or waits for a lock.
SILENCE = timedelta(minutes=10)
# And as long while it exports, verifies and publishes.
PATIENCE = timedelta(days=1)
# One that waits looks this often whether the process that it watches is gone.
GLANCE = timedelta(seconds=1)
FOREVER = timedelta(days=36500)


@dataclass
class Ranks:
    """This process among `size`: its number, and how many share its machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    _agreed_to_stop: bool = field(default=False, init=False)
    _patient: Any = field(default=None, init=False)  # a process group that waits for PATIENCE
    _gone: str = field(default="", init=False)  # how the process that is watched went
    _stuck: bool = field(default=False, init=False)  # in an operation that never ends

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def stopping(self) -> bool:
        """Has a signal asked the job to stop? Of several processes, as all of them know it."""
        return interrupt.requested() if self.size == 1 else self._agreed_to_stop

    def require_multiple(self, batch_size: int) -> None:
        """
        Raises:
            ConfigError: a batch cannot be divided evenly.
        """
        if batch_size % self.size:
            near = batch_size - batch_size % self.size or self.size
            raise ConfigError(
                f"train.batch_size: must be a multiple of the {self.size} processes that "
                f"torchrun started, over which a batch is divided; got {batch_size}, "
                f"{near} would do"
            )

    def share(self, rows: "NDArray[np.int64]") -> "NDArray[np.int64]":
        """This process's part of the rows of a batch (B,): as many as the others', or one less."""
        if self.size == 1:
            return rows
        counts = self.shares(len(rows))
        start = sum(counts[: self.rank])
        return rows[start : start + counts[self.rank]]

    def shares(self, rows: int) -> list[int]:
        """How many of a batch of so many rows each process takes."""
        return [rows // self.size + (rank < rows % self.size) for rank in range(self.size)]

    def sum(self, gradients: Sequence["Tensor"], loss: float) -> float:
        """Adds up the gradients of all processes, in place; the sum of their losses.

        Tells them in passing of a signal that one of them has noted.

        Raises:
            ProcessLost: another process is gone, or was silent for too long.
        """
        if self.size == 1:
            return loss
        import torch

        said = gradients[0].new_tensor([loss, interrupt.requested()])
        together = torch.cat([*(g.flatten() for g in gradients), said])
        self._collective(torch.distributed.all_reduce, together)
        *parts, said = torch.split(together, [*(g.numel() for g in gradients), 2])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
        total, signals = said.tolist()
        self._agree(bool(signals))
        return float(total)

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make` returns to the first process; the others do not call it.

        Raises:
            ProcessLost: another process is gone, or was silent for too long.
        """
        if self.size == 1:
            return make()
        import torch

        said: list[Any] = [make(), interrupt.requested()] if self.first else [None, None]
        broadcast = partial(torch.distributed.broadcast_object_list, said, src=0)
        with self._losing():
            # torch has no form of it that returns before it is done.
            done = ThreadPoolExecutor(1).submit(broadcast, device=torch.device("cpu"))
            self._wait(partial(done.result, GLANCE.total_seconds()), done.done)
        made, signal = said
        self._agree(signal)
        return made  # type: ignore[no-any-return]

    def end_together(self) -> None:
        """Returns once all have come here: none has succeeded before the first has.

        Raises:
            ProcessLost: another process is gone.
        """
        if self.size > 1:
            import torch

            self._collective(torch.distributed.all_reduce, torch.zeros(1), group=self._patient)

    def _agree(self, signal: bool) -> None:
        if signal:
            self._agreed_to_stop = True
            interrupt.note()

    def _collective(self, operation: Callable[..., Any], tensor: "Tensor", **named: Any) -> None:
        with self._losing():
            work = operation(tensor, async_op=True, **named)
            if tensor.is_cpu:
                self._wait(partial(work.wait, GLANCE), work.is_completed)
            else:
                work.wait()  # NCCL watches its connections itself

    def _wait(self, for_a_glance: Callable[[], object], done: Callable[[], bool]) -> None:
        while True:
            over = done()  # then this wait tells how it ended; else it may only be out of time
            try:
                for_a_glance()
                return
            except (RuntimeError, TimeoutError):
                if over:
                    raise
                if self._gone and not done():
                    self._stuck = True
                    raise RuntimeError(self._gone) from None

    @contextmanager
    def _losing(self) -> Iterator[None]:
        """Takes what torch.distributed raises for the loss of another process."""
        try:
            yield
        except RuntimeError as error:
            said = (str(error).splitlines() or [""])[0][:200]
            raise ProcessLost(
                f"another of the {self.size} processes is gone or does not answer ({said}); what "
                f"it said tells why; run again and the run resumes from its last checkpoint"
            ) from None


def ranks_of(environment: Mapping[str, str]) -> Ranks:
    """What torchrun says in RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE.

    Raises:
        ConfigError: they are not whole numbers, or do not fit together.
    """
    if "RANK" not in environment:
        return Ranks()
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    said = {name: environment.get(name, "") for name in names}
    if not all(value.isdecimal() for value in said.values()):
        raise ConfigError(
            f"environment: torchrun sets {', '.join(names)}, all of them numbers; found {said}"
        )
    rank, size, local_rank, local_size = map(int, said.values())
    if not (rank < size and local_rank < local_size <= size):
        raise ConfigError(f"environment: {said} are not of one group of processes")
    return Ranks(rank, size, local_rank, local_size)


def _connect(ranks: Ranks, backend: str) -> None:
    from torch._C._distributed_c10d import PrefixStore
    from torch.distributed import init_process_group, new_group
    from torch.distributed.rendezvous import rendezvous

    store, _, _ = next(rendezvous("env://", timeout=SILENCE))
    # torchrun keeps one store over its restarts: there are the addresses of those who are gone.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    init_process_group(
        backend,
        store=PrefixStore(f"attempt {attempt}", store),
        rank=ranks.rank,
        world_size=ranks.size,
        timeout=SILENCE,
    )
    ranks._patient = new_group(backend="gloo", timeout=PATIENCE)


def _watch_another(ranks: Ranks) -> Any:
    """Waits in a thread for the farewell of the process before this one; notes that it is gone
    without. The end of one so ends the next, and in the end all.

    gloo notices by itself, but where it has begun to send when the connection breaks it goes on
    waiting; what it receives it always ends. Returns the process group in which to say farewell,
    used for nothing else: its connections stay open while the thread waits.
    """
    from torch import zeros
    from torch.distributed import irecv, new_group

    group = new_group(backend="gloo", timeout=SILENCE)
    farewell: Any = irecv(zeros(1), (ranks.rank - 1) % ranks.size, group)

    def watch() -> None:
        try:
            farewell.wait(FOREVER)
        except RuntimeError as error:
            ranks._gone = str(error)

    threading.Thread(target=watch, daemon=True).start()
    return group


def _say_farewell(ranks: Ranks, group: Any) -> None:
    from torch import zeros
    from torch.distributed import isend

    with suppress(RuntimeError):  # the one after this has heard enough, and is gone
        farewell: Any = isend(zeros(1), (ranks.rank + 1) % ranks.size, group)
        farewell.wait(GLANCE)


@contextmanager
def joined(ranks: Ranks, device_type: str) -> Iterator[None]:
    """Holds the connections between the processes; does nothing for a single one.

    Raises:
        ProcessLost: the others did not come.
    """
    if ranks.size == 1:
        yield
        return
    import torch.distributed

    # What is not a gradient goes through gloo on every device.
    backend = "gloo" if device_type == "cpu" else "cpu:gloo,cuda:nccl"
    with ranks._losing():
        _connect(ranks, backend)
        group = _watch_another(ranks)
    try:
        yield
        _say_farewell(ranks, group)
    finally:
        ranks._patient = None  # a group that is held keeps its connections open
        if not ranks._stuck:  # it would wait for the operation
            # Else its threads abort the process at its end.
            torch.distributed.destroy_process_group()
