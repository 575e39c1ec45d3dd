"""Steps on CUDA without the host between them: recorded as CUDA graphs, and replayed.

A step of a small network is some twenty short kernels, and to launch each takes longer than to run
it. So the step of `Autograd` is written here such that the host is asked nothing: which rows it
takes, at which learning rate, and where its loss goes follow from a counter on the device, and from
the first loss or gradient on that is not finite no update is made. A graph holds STEPS steps on a
full batch, or one, or one on the smaller batch at an epoch's end. Many are launched before the
losses are read; not for longer than SECONDS, since only then a signal is looked at.

Graphs are used only if they leave the same bytes as the steps that they record.

Shapes: N training rows, B rows of a batch, S steps of an epoch.
"""

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import takewhile

import numpy as np
import torch
from numpy.typing import NDArray

from job.config import Config
from job.optim import device_updater
from job.train.step import Autograd, mean_loss

STEPS = 8
SECONDS = 0.5


def why_no_graphs(config: Config, processes: int) -> str | None:
    """What of the config needs the host in every step; None if there is nothing."""
    if processes > 1:
        return f"the {processes} processes add up their gradients"
    if config.model.dropout > 0:
        return "each step draws its dropout from a seed of its own"
    if config.train.optimizer.name not in ("adam", "adamw"):
        return f"train.optimizer is {config.train.optimizer.name}, not adam or adamw"
    return None


def steps_within_reach(steps: int, seconds: float) -> int:
    """How many take about SECONDS, where so many took so long; a multiple of STEPS."""
    return max(1, int(SECONDS * steps / seconds / STEPS)) * STEPS


class GraphedSteps:
    """The steps of an `Autograd` on batches of `batch` rows (the last of an epoch may have fewer).

    Until `record` each is launched by itself, on any device. Made when the optimizer's state is
    loaded.
    """

    def __init__(self, engine: Autograd, optimizer: torch.optim.Optimizer, batch: int) -> None:
        n, device = len(engine.x), engine.x.device
        self.engine, self.batch = engine, min(batch, n)
        self.update, self.state = device_updater(optimizer)
        steps = -(-n // batch)
        self.positions = torch.arange(self.batch, device=device)  # (B,) of a batch's rows
        self.rows = torch.arange(n, device=device)  # (N,) of the steps to come
        self.rates = torch.zeros(steps, device=device)  # (S,) likewise
        self.losses = torch.zeros(steps, device=device)  # (S,), not finite if no update was made
        self.numbers = torch.arange(steps, device=device)
        self.taken = torch.zeros(1, dtype=torch.int64, device=device)  # of those steps
        self.bad = torch.zeros((), device=device)  # 1 from the first that is not finite
        self.at_once = STEPS  # steps that take about SECONDS
        self.graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}

    def steps(self, batches: Sequence[NDArray[np.int64]], rates: Sequence[float]) -> list[float]:
        """Steps on the rows of these numbers, at these learning rates; each one's mean loss.

        They end before the first whose loss or gradient is not finite: the losses are then fewer.
        """
        start = time.perf_counter()
        rows = np.concatenate(batches)
        self.rows[: len(rows)].copy_(torch.from_numpy(rows))
        self.rates[: len(rates)].copy_(torch.tensor(rates))
        self._begin()
        full, rest = divmod(len(rows), self.batch)
        for _ in range(full // STEPS):
            self._launch(self.batch, STEPS)
        for _ in range(full % STEPS):
            self._launch(self.batch, 1)
        if rest:
            self._launch(rest, 1)
        losses = self.losses[: len(batches)].tolist()
        self.at_once = steps_within_reach(len(batches), time.perf_counter() - start)
        return list(takewhile(math.isfinite, losses))

    def record(self) -> None:
        """Records the graphs; weights and the optimizer's state stay as they are.

        Raises:
            RuntimeError: CUDA refused, or a graph does not do what its steps do.
        """
        full, rest = divmod(len(self.rows), self.batch)
        wanted = [(self.batch, STEPS)] if full >= STEPS else []
        wanted += [(self.batch, 1)] + ([(rest, 1)] if rest else [])
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        pool, usual = torch.cuda.graph_pool_handle(), torch.cuda.current_stream()
        graphs = {}
        with torch.cuda.stream(usual):  # comes back to it also where a recording fails
            for size, count in wanted:
                self.bad.fill_(1)  # so that these steps change nothing
                stream.wait_stream(usual)
                with torch.cuda.stream(stream):  # libraries make their workspaces when first used
                    for _ in range(3):
                        self.taken.zero_()
                        self._step(size)
                usual.wait_stream(stream)
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=pool, stream=stream):
                    for _ in range(count):
                        self._step(size)
                if not self.agree(partial(self._launch, size, count), graph.replay):
                    raise RuntimeError("a graph left other bytes than the steps that it records")
                graphs[size, count] = graph
        self.graphs = graphs

    def agree(self, one: Callable[[], object], other: Callable[[], object]) -> bool:
        """Do both leave the same bytes, from here? All is then again as it is now."""
        tensors = [*self.engine.parameters, *self.state, self.losses]
        before = [tensor.detach().clone() for tensor in tensors]
        left = []
        for steps in (one, other):
            self._begin()
            steps()
            left.append([tensor.detach().clone().view(torch.int32) for tensor in tensors])
            with torch.no_grad():
                for tensor, value in zip(tensors, before, strict=True):
                    tensor.copy_(value)
        return all(map(torch.equal, *left))

    def _begin(self) -> None:
        self.taken.zero_()
        self.bad.zero_()

    def _launch(self, size: int, count: int) -> None:
        """So many steps, each on so many rows."""
        if graph := self.graphs.get((size, count)):
            graph.replay()
            return
        for _ in range(count):
            self._step(size)

    def _step(self, size: int) -> None:
        """The next step, on so many rows: launches kernels and waits for none."""
        engine, parameters = self.engine, self.engine.parameters
        start = self.taken * self.batch
        rows = self.rows.index_select(0, start + self.positions[:size])
        x, y = (values.index_select(0, rows) for values in (engine.x, engine.y))
        loss = mean_loss(engine.network, engine.loss_function, x, y, bfloat16=engine.bfloat16)
        # Not loss.backward(), which would add to gradients on the stream they were first made on.
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            seen = loss + torch.nn.utils.get_total_norm(gradients, norm_type=float("inf"))
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            if engine.grad_clip is not None:
                seen += torch.nn.utils.clip_grad_norm_(parameters, engine.grad_clip)
            torch.maximum(self.bad, (~torch.isfinite(seen)).float(), out=self.bad)
            self.update(gradients, self.rates.index_select(0, self.taken)[0], self.bad)
            told = loss / (1 - self.bad)
            torch.where(self.numbers == self.taken, told, self.losses, out=self.losses)
            self.taken.add_(1)
