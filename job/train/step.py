"""One step of gradient descent, which stops before an update that is not finite.

Shapes: B rows of a batch, F features, O outputs; all standardised.
"""

import math
from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from job.errors import Diverged
from job.ranks import Ranks


def training_step(
    network: nn.Sequential,
    loss_function: nn.Module,
    update: Callable[[float], object],
    x: Tensor,
    y: Tensor,
    *,
    grad_clip: float | None = None,
    bfloat16: bool = False,
    ranks: Ranks | None = None,
    weight: float = 1.0,
) -> float:
    """Forward, backward, `update` on x (B, F), y (B, O); the mean loss over the batch.

    `grad_clip` is the norm to which the gradients are clipped, all together; `bfloat16` lets
    torch.autocast compute the layers in it, from float32 weights. Of several `ranks` each gives
    its part of the batch, empty for one, and the `weight` of that in the mean.

    Raises:
        Diverged: the loss or a gradient is not finite; the weights are as before.
    """
    network.zero_grad()
    loss = mean_loss(network, loss_function, x, y, bfloat16=bfloat16) * weight
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    value = (ranks or Ranks()).sum(gradients, loss.item())
    require_finite(value, network, x)
    if grad_clip is not None:
        clip(network.parameters(), grad_clip)
    update(value)
    return value


def mean_loss(
    network: nn.Sequential, loss_function: nn.Module, x: Tensor, y: Tensor, *, bfloat16: bool
) -> Tensor:
    """Of the network's answers to x (B, F), which with `bfloat16` autocast lets it compute."""
    with torch.autocast(x.device.type, torch.bfloat16, enabled=bfloat16):
        answer = network(x)
    if bfloat16:
        answer = answer.float()
    # The mean of no rows would be NaN.
    loss: Tensor = loss_function(answer, y) if len(x) else answer.sum()
    return loss


class Autograd:
    """Steps of a network on standardised rows x (N, F) and targets y, which lie on its device."""

    mode = torch.enable_grad

    def __init__(
        self,
        network: nn.Sequential,
        loss_function: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        grad_clip: float | None,
        bfloat16: bool,
        ranks: Ranks | None = None,
    ) -> None:
        self.network, self.loss_function, self.x, self.y = network.train(), loss_function, x, y
        self.grad_clip, self.bfloat16, self.ranks = grad_clip, bfloat16, ranks or Ranks()
        # A weighted loss is a weighted mean: of each row what its class weighs.
        weights = getattr(loss_function, "weight", None)
        self.weights = None if weights is None else weights[y]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What an optimizer updates."""
        return list(self.network.parameters())

    def step(self, rows: NDArray[np.int64], update: Callable[[float], object]) -> float:
        """`training_step` on this process's share of the rows of these numbers (B,)."""
        share = self.ranks.share(rows)
        numbers = torch.from_numpy(share).to(self.x.device)
        return training_step(
            self.network,
            self.loss_function,
            update,
            self.x[numbers],
            self.y[numbers],
            grad_clip=self.grad_clip,
            bfloat16=self.bfloat16,
            ranks=self.ranks,
            weight=1.0 if self.ranks.size == 1 else self._weight(share) / self._weight(rows),
        )

    def loss_and_gradients(self, rows: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Over the rows of these numbers (B,), by `parameters`; the host need not wait."""
        x, y = (values.index_select(0, rows) for values in (self.x, self.y))
        loss = mean_loss(self.network, self.loss_function, x, y, bfloat16=self.bfloat16)
        # Not loss.backward(), which would add to gradients on the stream they were first made on.
        parameters = self.parameters
        gradients = list(torch.autograd.grad(loss, parameters))
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        return loss.detach(), gradients

    def _weight(self, rows: NDArray[np.int64]) -> float:
        if self.weights is None:
            return len(rows)
        return float(self.weights[torch.from_numpy(rows)].sum())

    def release(self) -> None:
        """Drops the gradients."""
        self.network.zero_grad()


def require_finite(loss: float, network: nn.Sequential, x: Tensor) -> None:
    """
    Raises:
        Diverged: the loss on rows x (B, F) or a gradient is not finite; names the first layer.
    """
    if not math.isfinite(loss):
        raise Diverged(f"the loss is {loss}{_first_not_finite(network, x)}")
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    # The largest magnitude of all is not finite exactly if one of them is not; a sum of squares
    # could overflow where every gradient is finite.
    largest = torch.nn.utils.get_total_norm(list(gradients.values()), norm_type=float("inf"))
    if not torch.isfinite(largest):
        name = next(n for n, gradient in gradients.items() if not torch.isfinite(gradient).all())
        raise Diverged(f"the gradient of {name} is not finite")


@torch.no_grad()
def _first_not_finite(network: nn.Sequential, x: Tensor) -> str:
    if not torch.isfinite(x).all():
        return ", and so is a value of the rows themselves"
    for name, layer in network.named_children():
        x = layer(x)
        if not torch.isfinite(x).all():
            return f", first in what layer {name} ({type(layer).__name__}) answers"
    return ", while every layer's answers are finite"


def clip(parameters: Iterable[nn.Parameter], norm: float) -> None:
    """Clips their gradients, all together, to this norm.

    Raises:
        Diverged: their norm is not finite.
    """
    found = torch.nn.utils.clip_grad_norm_(parameters, norm)
    # Else every gradient would be multiplied by norm / infinity and nothing learnt, in silence.
    if not torch.isfinite(found):
        raise Diverged(f"the norm of the gradients is {found.item()} and cannot be clipped")
