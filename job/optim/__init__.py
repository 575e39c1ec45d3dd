"""Optimizers by name: what `train.optimizer` says -> a torch.optim.Optimizer."""

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import nn

from job.config import Optimizer
from job.log import WARNING, event
from job.optim.adamx import AdamX
from job.optim.adamz import AdamZ

__all__ = ["AdamX", "AdamZ", "make_optimizer", "updater"]

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
    kernel, (group, *_) = _KERNELS.get(type(optimizer)), optimizer.param_groups
    parameters = group["params"]
    if kernel is None or any(parameter.requires_grad for parameter in parameters):
        # A closure is how torch tells an optimizer the loss; AdamZ asks for it.
        return lambda loss: optimizer.step(lambda: loss)
    states = [optimizer.state[parameter] for parameter in parameters]
    for state, parameter in zip(states, parameters, strict=True):
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = (torch.zeros_like(parameter) for _ in range(2))
    gradients = [parameter.grad for parameter in parameters]
    means, squares, steps = ([s[key] for s in states] for key in ("exp_avg", "exp_avg_sq", "step"))
    fixed = {"beta1": group["betas"][0], "beta2": group["betas"][1], "eps": group["eps"]}
    fixed |= {"weight_decay": group["weight_decay"], "amsgrad": False, "maximize": False}

    def update(loss: float) -> None:
        for step in steps:
            step.add_(_ONE)
        kernel(parameters, gradients, means, squares, [], steps, lr=group["lr"], **fixed)

    return update


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
