"""The gradient of a multi-layer perceptron without autograd: for small layers several times faster.

A step gathers its rows in blocks that stay in the cache, runs them forward and backward through
buffers that are made once, and adds up the weights' gradients. All weights lie in one tensor, layer
after layer, each as (I + 1, O) with its bias as the last row, and meet inputs (I + 1, n) whose last
row is 1: one matrix product a layer then makes the weights' and the bias's gradient, and one
update of the optimizer is the whole network's. With a unit's values beside each other the row of
ones is no gap, and every operation on elements runs through contiguous memory. torch.autograd stays
the reference it is tested against.

Shapes: N training rows, B rows of a batch, n rows of a block; F features, I inputs and O outputs of
a layer, K classes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from job.config import Config
from job.ranks import Ranks
from job.train.step import clip, require_finite

# At most so many rows at once, and fewer where a layer would hold more numbers: 1 MB, which stays
# in a core's cache. A product of fewer than LEAST rows wastes more than the cache saves.
ROWS, NUMBERS, LEAST = 1024, 2**18, 64

Floats = NDArray[np.float32]
Operation = Callable[[], object]
_aten = torch.ops.aten

# Forward: the sums z to the answer. Where its derivative follows from the answer, that takes the
# place of z; the others keep z for it.
_FORWARD: dict[type[nn.Module], Callable[[Tensor, Tensor], Any]] = {
    nn.ReLU: lambda z, _: torch.relu_(z),
    nn.LeakyReLU: lambda z, _: nn.functional.leaky_relu_(z),
    nn.Tanh: lambda z, _: torch.tanh_(z),
    nn.GELU: lambda z, out: _aten.gelu.out(z, out=out),
    nn.SiLU: lambda z, out: _aten.silu.out(z, out=out),
}
_KEEP_SUMS = (nn.GELU, nn.SiLU)
# Backward: the loss's gradient d by the answer to that by the sums, in the place of h or z.
_BACKWARD: dict[type[nn.Module], Callable[[Tensor, Tensor], Any]] = {
    nn.ReLU: lambda d, h: _aten.threshold_backward.grad_input(d, h, 0, grad_input=h),
    nn.LeakyReLU: lambda d, h: _aten.leaky_relu_backward.grad_input(d, h, 0.01, True, grad_input=h),
    nn.Tanh: lambda d, h: _aten.tanh_backward.grad_input(d, h, grad_input=h),
    # oneDNN's, which does not broadcast
    nn.GELU: lambda d, z: _aten.gelu_backward.grad_input(
        d.expand_as(z).contiguous(), z, grad_input=z
    ),
    nn.SiLU: lambda d, z: _aten.silu_backward.grad_input(d, z, grad_input=z),
}


def why_autograd(config: Config, device: torch.device) -> str | None:
    """What of the config, or the device, only autograd can do; None if there is nothing."""
    train = config.train
    if device.type != "cpu":
        return "the device is not a CPU"
    if train.precision == "bfloat16":  # tf32 is float32 on a CPU
        return "train.precision is bfloat16"
    if config.model.dropout > 0:
        return "model.dropout is above 0"
    if train.loss not in ("mse", "cross_entropy"):
        return f"train.loss is {train.loss}"
    if train.class_weights is not None or train.label_smoothing > 0:
        return "train.class_weights or train.label_smoothing is set"
    return None


@dataclass(frozen=True)
class _Block:
    """The buffers for n rows, and what is done in them, in its order."""

    rows: Floats  # (n, F + 1 + T), as gathered: features, 1, targets
    targets: Tensor  # (T, n), a view of them
    forward: list[Operation]  # the rows to their answer
    answer: Tensor  # (O, n)
    delta: Tensor  # (O, n), the loss's gradient by the answer
    backward: list[Operation]  # that to the weights' gradient, to which it is added


class Backpropagation:
    """Steps on standardised rows x (N, F) and targets y: (N, O), or the classes' numbers (N,).

    The network's weights and their gradients are views of one parameter until `release`. The loss
    is the mean of squared errors, over outputs too, or of the cross-entropy for classes.
    """

    mode = torch.inference_mode  # for the steps: each call is cheaper in it, 6 % of a small step

    def __init__(
        self,
        network: nn.Sequential,
        x: Tensor,
        y: Tensor,
        grad_clip: float | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.network, self.grad_clip, self.ranks = network, grad_clip, ranks or Ranks()
        self.linear = [layer for layer in network if isinstance(layer, nn.Linear)]
        widest = max(max(layer.in_features, layer.out_features) for layer in self.linear)
        self.size = max(LEAST, min(ROWS, NUMBERS // widest // LEAST * LEAST))
        activation = type(network[1]) if len(network) > 1 else nn.ReLU
        self.forward, self.backward = _FORWARD[activation], _BACKWARD[activation]
        self.keeps_sums = activation in _KEEP_SUMS
        self.loss = _mean_squared_error if y.ndim == 2 else _cross_entropy
        # NumPy's, since its gather is twice as fast as torch's.
        ones, targets = np.ones((len(x), 1), np.float32), y.view(len(y), -1).numpy()
        self.rows: Floats = np.concatenate([x.numpy(), ones, targets], 1, dtype=np.float32)
        # Nothing here is autograd's: to ask it for no gradient costs 3 us a step.
        self.flat = nn.Parameter(
            torch.cat([p.detach().t().flatten() for p in network.parameters()]),
            requires_grad=False,
        )
        self.gradient = self.flat.grad = torch.zeros_like(self.flat)
        self.weights, self.gradients = self._views(self.flat.data), self._views(self.gradient)
        for layer, weight, gradient in zip(self.linear, self.weights, self.gradients, strict=True):
            layer.weight.data, layer.bias.data = weight[:-1].t(), weight[-1]
            layer.weight.grad, layer.bias.grad = gradient[:-1].t(), gradient[-1]
        self.blocks: dict[int, _Block] = {}

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What an optimizer updates: all weights in one."""
        return [self.flat]

    def step(self, rows: NDArray[np.int64], update: Callable[[float], object]) -> float:
        """Gradient and `update` on the rows of these numbers (B,); the mean loss before it.

        Raises:
            Diverged: the loss or a gradient is not finite; the weights are as before.
        """
        loss = self.differentiate(self.ranks.share(rows), len(rows))
        loss = self.ranks.sum([self.gradient], loss)
        # A sum of squares may overflow where every gradient is finite: then each is looked at.
        if not math.isfinite(loss + torch.dot(self.gradient, self.gradient).item()):
            share = self.rows[self.ranks.share(rows), : self.linear[0].in_features]
            require_finite(loss, self.network, torch.from_numpy(share))
        if self.grad_clip is not None:
            clip(self.network, self.grad_clip)
        update(loss)
        return loss

    def differentiate(self, rows: NDArray[np.int64], batch: int) -> float:
        """What these rows are of the mean loss over a batch of so many; the gradient of that is
        left in the network's parameters."""
        self.gradient.zero_()
        loss = 0.0
        for start in range(0, len(rows), self.size):
            loss += self._add(rows[start : start + self.size], batch)
        return loss

    def release(self) -> None:
        """Gives the network weights of its own again, in the usual layout, without gradients."""
        for parameter in self.network.parameters():
            parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
            parameter.grad = None

    def _add(self, part: NDArray[np.int64], batch: int) -> float:
        """Adds one block's share to the batch's gradient; and of its loss."""
        if len(part) not in self.blocks:
            self.blocks[len(part)] = self._block(len(part))
        block = self.blocks[len(part)]
        self.rows.take(part, 0, block.rows, "clip")  # "raise" would need a copy
        for operation in block.forward:
            operation()
        loss = self.loss(block.answer, block.targets, batch, block.delta)
        for operation in block.backward:
            operation()
        return loss

    def _block(self, n: int) -> _Block:
        features = self.linear[0].in_features
        rows = torch.empty(n, self.rows.shape[1])
        inputs = [rows[:, : features + 1].t()]  # of each layer, (I + 1, n): the last row is 1
        sums: list[Tensor] = []  # of each layer, (O, n), or in their place its answer
        forward: list[Operation] = []
        # Of the first layer. torch's gelu, for one, does not heed the strides that more would make.
        in_place = len(self.weights) > 1 and not self.keeps_sums
        columns = _columns(n, features + 1) if in_place else n
        for weight in self.weights:
            following = torch.zeros(weight.shape[1] + 1, n if sums else columns)
            following[-1] = 1
            z = torch.zeros_like(following[:-1]) if self.keeps_sums else following[:-1]
            forward.append(partial(torch.mm, weight.t(), inputs[-1], out=z[:, :n]))
            forward.append(partial(self.forward, z[:, :n], following[:-1, :n]))
            inputs.append(following[:, :n])
            sums.append(z)
        forward.pop()  # the last layer has no activation

        # The loss's gradient by each layer's sums, (O, n), in whose place it comes.
        deltas = [*sums[:-1], torch.empty_like(sums[-1])]
        backward: list[Operation] = []
        scale = _scalar(1.0)  # of each row's delta in the first layer
        for i in range(len(deltas) - 1, 0, -1):
            delta, before, weight = deltas[i], deltas[i - 1][:, :n], self.weights[i][:-1]
            backward.append(partial(self.gradients[i].addmm_, inputs[i], delta.t()))
            if len(delta) > 1:
                below = torch.empty(len(weight), n)
                backward.append(partial(torch.mm, weight, delta, out=below))
                backward.append(partial(self.backward, below, before))
                continue
            # An outer product: its factors one by one are faster.
            backward.append(partial(self.backward, weight, before))
            if i > 1:
                backward.append(partial(before.mul_, delta))
            else:
                scale = delta  # goes with the features, which are fewer than the units
        # The copy that this makes lies better than the gathered rows: up to four times as fast.
        scaled = torch.zeros(features + 1, columns)
        backward.append(partial(torch.mul, inputs[0], scale, out=scaled[:, :n]))
        backward.append(partial(self.gradients[0].addmm_, scaled, deltas[0].t()))
        targets = rows[:, features + 1 :].t()
        return _Block(rows.numpy(), targets, forward, sums[-1], deltas[-1], backward)

    def _views(self, flat: Tensor) -> list[Tensor]:
        """The parts (I + 1, O) of `flat`, one for each layer."""
        shapes = [(layer.in_features + 1, layer.out_features) for layer in self.linear]
        parts = torch.split(flat, [inputs * outputs for inputs, outputs in shapes])
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def _columns(n: int, inputs: int) -> int:
    """How many the first layer's sums have for n rows; those beyond stay 0.

    oneMKL multiplies (I, n) by (n, O) in half the time where I is small and n at least 24 I:
    5.3 us instead of 9.7 for (11, 272) and (11, 256) with 100 outputs.
    """
    enough = -(-24 * inputs // 16) * 16
    return enough if inputs <= 16 and 16 * inputs < n < enough else n


def _mean_squared_error(answer: Tensor, y: Tensor, batch: int, delta: Tensor) -> float:
    """sum (answer - y)^2 / (B O), and its gradient by the answer in `delta` (O, n)."""
    torch.sub(answer, y, out=delta)
    errors, scale = delta.view(-1), 1 / (batch * delta.shape[0])
    loss = torch.dot(errors, errors).item() * scale
    delta.mul_(_scalar(2 * scale))
    return loss


def _cross_entropy(logits: Tensor, y: Tensor, batch: int, delta: Tensor) -> float:
    """-sum log softmax(logits)_y / B, and its gradient by the logits in `delta` (K, n)."""
    classes = y.long()
    _aten.log_softmax.int_out(logits, 0, out=delta)
    logs = delta.gather(0, classes)
    loss = -logs.sum().item() / batch
    delta.exp_().scatter_(0, classes, logs.exp_().sub_(1)).mul_(_scalar(1 / batch))
    return loss


@lru_cache(maxsize=4)  # full blocks and the last ones
def _scalar(value: float) -> Tensor:
    """As a tensor: a Python number costs an operation 1.5 us more, on 256 rows 2 % of the step."""
    return torch.tensor(value)
