"""The gradient of a multi-layer perceptron without autograd: for small layers several times faster.

A step gathers its rows in blocks that stay in the cache, runs them forward and backward through
buffers that are made once, and adds up the weights' gradients. All weights lie in one tensor, layer
after layer, each as (I + 1, O) with its bias as the last row, and meet inputs (I + 1, n) whose last
row is 1: one matrix product a layer then makes the weights' and the bias's gradient, and one
update of the optimizer is the whole network's. With a unit's values beside each other the row of
ones is no gap, and every operation on elements runs through contiguous memory. torch.autograd stays
the reference it is tested against.

On CUDA the rows lie on the device, and of a step all but the update are some ten kernels.

Shapes: N training rows, B rows of a batch, n rows of a block; F features, I inputs and O outputs of
a layer, K classes.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from job import torchscript
from job.config import Config
from job.ranks import Ranks
from job.train.step import clip, require_finite

# At most so many rows at once, and fewer where a layer would hold more numbers: 1 MB, which stays
# in a core's cache. A product of fewer than LEAST rows wastes more than the cache saves.
ROWS, NUMBERS, LEAST = 1024, 2**18, 64
FEW = 4096  # rows on a GPU

Operation = partial[Any]
Gather = Callable[[Any], object]  # leaves the rows of these numbers in a block's buffer
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
    """What of the config only autograd can do on this device; None if there is nothing."""
    train = config.train
    if train.precision == "bfloat16":
        return "train.precision is bfloat16"
    if config.model.dropout > 0:
        return "model.dropout is above 0"
    if train.loss not in ("mse", "cross_entropy"):
        return f"train.loss is {train.loss}"
    if train.loss != "mse" and device.type == "cuda":
        return f"train.loss is {train.loss}, on CUDA"
    if train.class_weights is not None or train.label_smoothing > 0:
        return "train.class_weights or train.label_smoothing is set"
    return None


class _Block(nn.Module):
    """What is done with n rows once they are gathered: operations on buffers, in this order.

    A module that has them as its own, since of others torch.jit.trace leaves out what changes them.
    """

    def __init__(
        self, forward: list[Operation], loss: Operation, backward: list[Operation]
    ) -> None:
        super().__init__()
        self.to_answer, self.loss, self.to_gradients = forward, loss, backward
        values = [v for o in (*forward, loss, *backward) for v in (*o.args, *o.keywords.values())]
        tensors = {id(value): value for value in values if isinstance(value, Tensor)}
        for number, tensor in enumerate(tensors.values()):
            self.register_buffer(f"buffer_{number}", tensor)

    def forward(self) -> Tensor:
        """The rows' loss (); the gradient of the weights is added to what is there."""
        for operation in self.to_answer:
            operation()
        loss: Tensor = self.loss()
        for operation in self.to_gradients:
            operation()
        return loss


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
        self.activation = type(network[1]) if len(network) > 1 else nn.ReLU
        self.forward, self.backward = _FORWARD[self.activation], _BACKWARD[self.activation]
        self.keeps_sums = self.activation in _KEEP_SUMS
        self.classes = y.ndim == 1
        self.targets = 1 if self.classes else y.shape[1]  # of a row
        self.rows = torch.cat([x, x.new_ones(len(x), 1), y.view(len(y), -1).to(x.dtype)], 1)
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
        # For so many rows of a batch of so many: what fetches them, and what does the rest.
        self.blocks: dict[tuple[int, int], tuple[Gather, Callable[[], Tensor]]] = {}

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
            share = self.rows[torch.from_numpy(self.ranks.share(rows))]
            require_finite(loss, self.network, share[:, : self.linear[0].in_features])
        if self.grad_clip is not None:
            clip(self.parameters, self.grad_clip)
        update(loss)
        return loss

    def differentiate(self, rows: NDArray[np.int64], batch: int) -> float:
        """What these rows are of the mean loss over a batch of so many; the gradient of that is
        left in the network's parameters."""
        self.gradient.zero_()
        loss = 0.0
        for start in range(0, len(rows), self.size):
            loss += self._run(rows[start : start + self.size], batch).item()
        return loss / (batch * self.targets)

    def release(self) -> None:
        """Gives the network weights of its own again, in the usual layout, without gradients."""
        for parameter in self.network.parameters():
            parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
            parameter.grad = None

    def _run(self, part: Any, batch: int) -> Tensor:
        """One block's rows, by their numbers (n,), forward and backward; their loss ().

        Their share of the gradient is added to the others'.
        """
        if (len(part), batch) not in self.blocks:
            self.blocks[len(part), batch] = self._block(len(part), batch)
        gather, run = self.blocks[len(part), batch]
        gather(part)
        return run()

    def _gather(self, into: Tensor) -> Gather:
        """A function of rows' numbers (n,) that leaves the rows in `into`."""
        # NumPy's is twice as fast as torch's; its "raise" would need a copy.
        rows, buffer = self.rows.numpy(), into.numpy()
        return lambda numbers: rows.take(numbers, 0, buffer, "clip")

    def _block(self, n: int, batch: int) -> tuple[Gather, Callable[[], Tensor]]:
        features = self.linear[0].in_features
        rows = self.rows.new_zeros(n, self.rows.shape[1])
        inputs = [rows[:, : features + 1].t()]  # of each layer, (I + 1, n): the last row is 1
        sums: list[Tensor] = []  # of each layer, (O, n), or in their place its answer
        forward: list[Operation] = []
        # Of the first layer. torch's gelu, for one, does not heed the strides that more would make.
        in_place = len(self.weights) > 1 and not self.keeps_sums
        columns = self._columns(n) if in_place else n
        for weight in self.weights:
            following = rows.new_zeros(weight.shape[1] + 1, n if sums else columns)
            following[-1] = 1
            z = torch.zeros_like(following[:-1]) if self.keeps_sums else following[:-1]
            if weight is self.weights[-1]:
                forward.append(partial(torch.mm, weight.t(), inputs[-1], out=z))
            else:
                forward += self._layer(weight, inputs[-1], z[:, :n], following[:-1, :n])
            inputs.append(following[:, :n])
            sums.append(z)

        # The loss's gradient by each layer's sums, (O, n), in whose place it comes.
        deltas = [*sums[:-1], torch.empty_like(sums[-1])]
        backward: list[Operation] = []
        scale = torch.tensor(1.0)  # of each row's delta in the first layer
        for i in range(len(deltas) - 1, 0, -1):
            delta, before, weight = deltas[i], deltas[i - 1][:, :n], self.weights[i][:-1]
            backward.append(self._product(i, inputs[i], delta))
            if len(delta) > 1:
                below = rows.new_empty(len(weight), n)
                backward.append(partial(torch.mm, weight, delta, out=below))
                backward.append(partial(self.backward, below, before))
                continue
            # An outer product: its factors one by one are faster.
            backward.append(partial(self.backward, weight, before))
            if i > 1:
                backward.append(partial(Tensor.mul_, before, delta))
            else:
                scale = delta  # goes with the features, which are fewer than the units
        # The copy that this makes lies better than the gathered rows: up to four times as fast.
        scaled = rows.new_zeros(features + 1, columns)
        backward.append(partial(torch.mul, inputs[0], scale, out=scaled[:, :n]))
        backward.append(self._product(0, scaled, deltas[0]))
        targets = rows[:, features + 1 :].t()
        loss = self._loss(sums[-1], targets, batch, deltas[-1])
        return self._gather(rows), self._recorded(_Block(forward, loss, backward))

    def _recorded(self, block: _Block) -> Callable[[], Tensor]:
        """What `block` does, without Python between its operations: a tenth of a small step."""
        before = self.gradient.clone()
        recorded: Callable[[], Tensor] = torchscript.trace(block).forward  # does it too
        self.gradient.copy_(before)
        return recorded

    def _columns(self, n: int) -> int:
        """How many the first layer's sums have for n rows; those beyond stay 0.

        oneMKL multiplies (I, n) by (n, O) in half the time where I is small and n at least 24 I:
        5.3 us instead of 9.7 for (11, 272) and (11, 256) with 100 outputs.
        """
        inputs = self.linear[0].in_features + 1
        enough = -(-24 * inputs // 16) * 16
        return enough if inputs <= 16 and 16 * inputs < n < enough else n

    def _loss(self, answer: Tensor, y: Tensor, batch: int, delta: Tensor) -> Operation:
        """The rows' loss (), summed; leaves the gradient of the batch's mean in `delta` (O, n)."""
        # As a tensor: a Python number costs an operation 1.5 us more.
        scale = torch.tensor(1 / (batch * self.targets))
        if self.classes:
            return partial(_cross_entropy, answer, y, scale, delta)
        return partial(_squared_errors, answer, y, 2 * scale, delta)

    def _layer(self, weight: Tensor, inputs: Tensor, z: Tensor, answer: Tensor) -> list[Operation]:
        """Of a hidden layer: inputs (I + 1, n) to sums z (O, n) to its answer (O, n)."""
        return [partial(torch.mm, weight.t(), inputs, out=z), partial(self.forward, z, answer)]

    def _product(self, i: int, inputs: Tensor, delta: Tensor) -> Operation:
        """Adds layer i's gradient, from its inputs (I + 1, n) and the loss's by its sums (O, n)."""
        return partial(Tensor.addmm_, self.gradients[i], inputs, delta.t())

    def _views(self, flat: Tensor) -> list[Tensor]:
        """The parts (I + 1, O) of `flat`, one for each layer."""
        shapes = [(layer.in_features + 1, layer.out_features) for layer in self.linear]
        parts = torch.split(flat, [inputs * outputs for inputs, outputs in shapes])
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


class DeviceBackpropagation(Backpropagation):
    """The same on CUDA, where the rows lie, and the host need not wait; squared errors only.

    A batch is one block, since no core's cache matters, and what of a step can be is one kernel.
    It runs on a CPU as well, for tests.
    """

    def __init__(
        self,
        network: nn.Sequential,
        x: Tensor,
        y: Tensor,
        grad_clip: float | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        super().__init__(network, x, y, grad_clip, ranks)
        # For the loss, which the gradient need not wait for: 2.5 us of a step of 30.
        self.aside = torch.cuda.Stream() if x.is_cuda else None  # type: ignore[no-untyped-call]

    def differentiate(self, rows: NDArray[np.int64], batch: int) -> float:
        if not len(rows):
            self.gradient.zero_()
            return 0.0
        return self._loss_of(torch.from_numpy(rows).to(self.rows.device), batch).item()

    def loss_and_gradients(self, rows: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Over the rows of these numbers (B,), by `parameters`; the host need not wait."""
        return self._loss_of(rows, len(rows)), [self.gradient]

    def _loss_of(self, rows: Tensor, batch: int) -> Tensor:
        loss: Tensor = self._run(rows, batch)
        if self.aside is not None:
            torch.cuda.current_stream().wait_stream(self.aside)
        return loss

    def _squared_errors(
        self, answer: Tensor, y: Tensor, batch: int, share: Tensor, delta: Tensor
    ) -> Tensor:
        """What these rows, this `share` () of a batch, are of the mean; its gradient in `delta`."""
        if self.aside is not None:
            self.aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.aside):
            loss = nn.functional.mse_loss(answer, y)
            if answer.shape[1] < batch:
                loss *= share
        _aten.mse_loss_backward.grad_input(share, answer, y, 1, grad_input=delta)
        return loss

    def _loss(self, answer: Tensor, y: Tensor, batch: int, delta: Tensor) -> Operation:
        """What these rows are of the mean (), and its gradient in `delta`."""
        share = answer.new_full((), answer.shape[1] / batch)
        return partial(self._squared_errors, answer, y, batch, share, delta)

    def _recorded(self, block: _Block) -> Callable[[], Tensor]:
        """As it is: a CUDA graph records it."""
        return block.forward

    def _gather(self, into: Tensor) -> Gather:
        return lambda numbers: torch.index_select(self.rows, 0, numbers, out=into)

    def _columns(self, n: int) -> int:
        return n

    def _layer(self, weight: Tensor, inputs: Tensor, z: Tensor, answer: Tensor) -> list[Operation]:
        """With ReLU the product's own kernel ends in it: a fifth of a wide network's step."""
        if self.activation is not nn.ReLU:
            return super()._layer(weight, inputs, z, answer)
        no_bias = z.new_zeros(z.shape[1])
        return [partial(torch._addmm_activation, no_bias, weight.t(), inputs, out=z)]

    def _product(self, i: int, inputs: Tensor, delta: Tensor) -> Operation:
        """With a bias, be it 0, torch asks cuBLASLt and not cuBLAS, which for the first layer of
        few inputs on few rows chooses a kernel that takes 52 us and not 3."""
        outputs, n = delta.shape
        product = partial(torch.mm, out=self.gradients[i])  # of a batch's only block: added to none
        if i == 0 and n < FEW:
            product = partial(torch.addmm, delta.new_zeros(outputs), out=self.gradients[i])
        return partial(product, inputs, delta.t())


def _squared_errors(answer: Tensor, y: Tensor, scale: Tensor, delta: Tensor) -> Tensor:
    """sum (answer - y)^2; leaves (answer - y) scale in `delta` (O, n)."""
    torch.sub(answer, y, out=delta)
    errors = delta.view(-1)
    loss = torch.dot(errors, errors)
    delta.mul_(scale)
    return loss


def _cross_entropy(logits: Tensor, y: Tensor, scale: Tensor, delta: Tensor) -> Tensor:
    """-sum log softmax(logits)_y; leaves its gradient times `scale` in `delta` (K, n)."""
    classes = y.long()
    _aten.log_softmax.int_out(logits, 0, out=delta)
    logs = delta.gather(0, classes)
    loss = -logs.sum()
    delta.exp_().scatter_(0, classes, logs.exp_().sub_(1)).mul_(scale)
    return loss
