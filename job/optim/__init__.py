"""Optimizers by name: what `train.optimizer` says -> a torch.optim.Optimizer."""

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import nn

from job.config import Optimizer
from job.log import WARNING, event
from job.optim.adamx import AdamX
from job.optim.adamz import AdamZ

__all__ = ["AdamX", "AdamZ", "make_optimizer", "update"]

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


def update(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, loss: float) -> None:
    """optimizer.step() where `parameter`, of no interest to autograd, is all that it has to update.

    Adam and AdamW go straight to the fused kernel that their `step` ends in, and skip 25 us of
    bookkeeping for parameters in general: half of a whole step on 256 rows of a small network.
    """
    kernel = _KERNELS.get(type(optimizer))
    if kernel is None:
        optimizer.step(lambda: loss)  # a closure is how torch tells the loss; AdamZ asks for it
        return
    assert parameter.grad is not None
    state = optimizer.state[parameter]
    if not state:
        state["step"] = torch.zeros(())
        state["exp_avg"], state["exp_avg_sq"] = (torch.zeros_like(parameter) for _ in range(2))
    group = optimizer.param_groups[0]
    beta1, beta2 = group["betas"]
    state["step"].add_(_ONE)
    kernel(
        [parameter],
        [parameter.grad],
        [state["exp_avg"]],
        [state["exp_avg_sq"]],
        [],
        [state["step"]],
        lr=group["lr"],
        beta1=beta1,
        beta2=beta2,
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        amsgrad=False,
        maximize=False,
    )


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
