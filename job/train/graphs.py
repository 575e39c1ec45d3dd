"""Steps on CUDA without the host between them: recorded as CUDA graphs, and replayed.

A step of a small network is some fifteen short kernels, and to launch each takes longer than to run
it. So a step is written here such that the host is asked nothing: the rows that it takes, its
learning rate and its loss lie where the graph reads and writes them, and from the first loss or
gradient on that is not finite no update is made. A graph holds STEPS steps on full batches, or one,
or one on the smaller batch at an epoch's end. Many are launched before the losses are read; not for
longer than SECONDS, since only then a signal is looked at.

Graphs are used only if they leave the same bytes as the steps that they record.

Shapes: N training rows, B rows of a batch, S steps of an epoch.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from job.config import Config
from job.optim import device_updater, pieces

STEPS = 8
SECONDS = 0.5


class Engine(Protocol):
    """What computes the gradients."""

    grad_clip: float | None

    @property
    def parameters(self) -> list[nn.Parameter]: ...

    def loss_and_gradients(self, rows: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The mean loss () over the rows of these numbers (B,), and its gradients by `parameters`,
        for which the host need not wait."""


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
    """The steps of an engine on batches of `batch` rows (the last of an epoch may have fewer).

    Until `record` each is launched by itself, on any device. Made when the optimizer's state is
    loaded.
    """

    def __init__(
        self, engine: Engine, optimizer: torch.optim.Optimizer, batch: int, n: int
    ) -> None:
        device = engine.parameters[0].device
        self.engine, self.batch = engine, min(batch, n)
        steps = -(-n // batch)
        self.rows = torch.arange(n, device=device)  # (N,) of the steps to come
        self.rates = torch.zeros(steps, device=device)  # (S,) likewise
        self.losses = torch.zeros(steps, device=device)  # (S,) of those taken
        # The same of the steps of one graph, which always reads and writes in one place.
        self.its_rows = torch.zeros_like(self.rows[: STEPS * self.batch])
        self.its_rates, self.its_losses = (torch.zeros(STEPS, device=device) for _ in range(2))
        self.bad = torch.zeros((), device=device)  # 1 from the first that is not finite
        self.one = torch.ones((), device=device)
        self.made = torch.zeros((), device=device)  # updates
        self.update, self.state = device_updater(optimizer, self.made)
        self.at_once = STEPS  # steps that take about SECONDS
        self.graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}

    def steps(self, rows: NDArray[np.int64], rates: Sequence[float]) -> list[float]:
        """A step for each of the learning rates, on the next of these rows; each one's mean loss.

        They end before the first whose loss or gradient is not finite: the losses are then fewer.
        """
        start = time.perf_counter()
        self.rows[: len(rows)].copy_(torch.from_numpy(rows))
        self.rates[: len(rates)].copy_(torch.tensor(rates))
        self._begin()
        full, rest = divmod(len(rows), self.batch)
        for first in range(0, full - full % STEPS, STEPS):
            self._launch(self.batch, STEPS, first)
        for step in range(full - full % STEPS, full):
            self._launch(self.batch, 1, step)
        if rest:
            self._launch(rest, 1, full)
        losses: list[float] = self.losses[: len(rates)].tolist()
        self.at_once = steps_within_reach(len(rates), time.perf_counter() - start)
        return losses[: int(self.made.item())]

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
                        self._steps(size, 1)
                usual.wait_stream(stream)
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=pool, stream=stream):
                    self._steps(size, count)
                launch = partial(self._launch, size, count, 0)
                if not self.agree(launch, partial(launch, graph)):
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
        self.made.zero_()
        self.bad.zero_()

    def _launch(
        self, size: int, count: int, first: int, graph: torch.cuda.CUDAGraph | None = None
    ) -> None:
        """So many steps, each on so many rows, from this step on."""
        graph = graph or self.graphs.get((size, count))
        start, several = first * self.batch, slice(first, first + count)
        self.its_rows[: size * count].copy_(self.rows[start : start + size * count])
        self.its_rates[:count].copy_(self.rates[several])
        if graph is None:
            self._steps(size, count)
        else:
            graph.replay()
        self.losses[several].copy_(self.its_losses[:count])

    def _steps(self, size: int, count: int) -> None:
        """Launches kernels and waits for none."""
        losses = []
        for i in range(count):
            rows = self.its_rows[i * size : (i + 1) * size]
            loss, gradients = self.engine.loss_and_gradients(rows)
            losses.append(loss)
            seen = [loss, *pieces(gradients)]
            if self.engine.grad_clip is not None:
                parameters = self.engine.parameters
                seen.append(torch.nn.utils.clip_grad_norm_(parameters, self.engine.grad_clip))
            # What AMP has for gradients that are not finite; here they are scaled by 1.
            torch._amp_foreach_non_finite_check_and_unscale_(seen, self.bad, self.one)
            with torch.no_grad():
                self.update(gradients, self.its_rates[i], self.bad)
        torch.stack(losses, out=self.its_losses[:count])
