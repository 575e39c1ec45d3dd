"""Optimizers by name: what `train.optimizer` says -> a torch.optim.Optimizer."""

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import nn

from job.config import Optimizer
from job.log import WARNING, event
from job.optim.adamx import AdamX
from job.optim.adamz import AdamZ

__all__ = ["AdamX", "AdamZ", "make_optimizer"]

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
    return TABLE[config.name](parameters, **config.model_dump(exclude={"name"}))


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
