"""Optimizers by name: what `train.optimizer` says -> a torch.optim.Optimizer."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from job.config import Optimizer
from job.log import WARNING, event
from job.optim.adamx import AdamX
from job.optim.adamz import AdamZ

__all__ = ["AdamX", "AdamZ", "device_updater", "make_optimizer", "pieces", "updater"]

# fused: one kernel for all parameters instead of several for each.
TABLE: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": partial(torch.optim.Adam, fused=True),
    "adamw": partial(torch.optim.AdamW, fused=True),
    "adamx": AdamX,
    "adamz": AdamZ,
    "sgd": partial(torch.optim.SGD, fused=True),
}


def make_optimizer(parameters: Iterable[nn.Parameter], config: Optimizer) -> torch.optim.Optimizer:
    """The optimizer over `parameters`; its hyperparameters are the config's keys."""
    _say_what_to_know(config)
    _leave_the_compiler_out()
    return TABLE[config.name](parameters, **config.model_dump(exclude={"name"}))


_ONE = torch.tensor(1.0)  # a Python number costs the addition 1.5 us more
# What their `step` ends in.
_KERNELS = {torch.optim.Adam: torch._fused_adam_, torch.optim.AdamW: torch._fused_adamw_}


def updater(optimizer: torch.optim.Optimizer) -> Callable[[float], object]:
    """A function of the loss that does what optimizer.step() does; made when the state is loaded.

    Where autograd has no interest in the parameters, whose gradients then stay where they are, Adam
    and AdamW go straight to the fused kernel that their `step` ends in, and skip 25 us of
    bookkeeping for parameters in general: half of a whole step on 256 rows of a small network.
    """
    (group, *_) = optimizer.param_groups
    parameters = group["params"]
    if type(optimizer) not in _KERNELS or any(p.requires_grad for p in parameters):
        # A closure is how torch tells an optimizer the loss; AdamZ asks for it.
        return lambda loss: optimizer.step(lambda: loss)
    kernel, steps, _ = _fused(optimizer)
    gradients = [parameter.grad for parameter in parameters]

    def update(loss: float) -> None:
        for step in steps:
            step.add_(_ONE)
        kernel(gradients, lr=group["lr"])

    return update


def device_updater(
    optimizer: torch.optim.Optimizer, made: Tensor
) -> tuple[Callable[[Sequence[Tensor], Tensor, Tensor], None], list[Tensor]]:
    """A step of Adam or AdamW that asks the host nothing, and the state that it changes besides
    the parameters; made when the state is loaded.

    It takes the parameters' gradients, the learning rate () and `skip` (): 0, or 1 for no update,
    which is the kernels' own way to leave out a step that is not finite. `made` () counts the
    updates.
    """
    kernel, steps, moments = _fused(optimizer, pieces)
    counts = [*steps, made]

    def update(gradients: Sequence[Tensor], rate: Tensor, skip: Tensor) -> None:
        # With the one tensor itself torch would ask it for its value.
        torch._foreach_add_(counts, [1 - skip] * len(counts))
        kernel(pieces(gradients), lr=rate, found_inf=skip)

    return update, [*steps, *moments]


def pieces(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The tensors, those of one dimension in parts, on which a GPU's processors work at once.

    A fused kernel gives 65,536 numbers of a tensor to one of them, which has room for some 2,048.
    """
    found: list[Tensor] = []
    for tensor in tensors:
        size = max(2048, -(-len(tensor) // 32))
        found += torch.split(tensor.detach(), size) if tensor.ndim == 1 else [tensor.detach()]
    return found


def _fused(
    optimizer: torch.optim.Optimizer,
    parts: Callable[[Sequence[Tensor]], list[Tensor]] = list,
) -> tuple[Callable[..., object], list[Tensor], list[Tensor]]:
    """The kernel of (gradients, lr=), the numbers of the steps, which it wants counted, and the
    moments. Makes the state where there is none."""
    (group, *_) = optimizer.param_groups
    states = [optimizer.state[parameter] for parameter in group["params"]]
    for state, parameter in zip(states, group["params"], strict=True):
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)
            state["exp_avg"], state["exp_avg_sq"] = (torch.zeros_like(parameter) for _ in range(2))
    means, squares, steps = ([s[key] for s in states] for key in ("exp_avg", "exp_avg_sq", "step"))
    kernel = partial(
        _KERNELS[type(optimizer)],
        parts(group["params"]),
        exp_avgs=parts(means),
        exp_avg_sqs=parts(squares),
        max_exp_avg_sqs=[],
        state_steps=[step for step, mean in zip(steps, means, strict=True) for _ in parts([mean])],
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        eps=group["eps"],
        weight_decay=group["weight_decay"],
        amsgrad=False,
        maximize=False,
    )
    return kernel, steps, [*means, *squares]


def _leave_the_compiler_out() -> None:
    """Nothing is compiled here, so the methods that torch keeps from its compiler are left as they
    are; to ask the compiler for that, torch would import it: a second or two of a run.
    """
    for method in vars(torch.optim.Optimizer).values():
        plain = getattr(method, "__wrapped__", None)
        if plain is not None:
            plain.__dynamo_disable = plain  # where torch/_compile.py keeps the compiler's answer


def _say_what_to_know(config: Optimizer) -> None:
    if config.name == "adamx":
        event(
            "optimizer",
            "adamx is the AdamX of Phuong and Phong (2019, arXiv 1904.03590), Algorithm 2",
            optimizer=config.name,
        )
    if config.name == "adamz" and config.max_lr > 10 * config.lr:
        event(
            "adamz_may_climb",
            f"adamz takes a steady fall of the loss for stagnation and may raise the learning rate "
            f"from {config.lr:g} to {config.max_lr:g}; lower train.optimizer.max_lr",
            level=WARNING,
            lr=config.lr,
            max_lr=config.max_lr,
        )
