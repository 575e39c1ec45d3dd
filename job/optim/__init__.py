"""Optimizers by name: what `train.optimizer` says -> a torch.optim.Optimizer."""

from collections.abc import Callable, Iterable

import torch
from torch import nn

from job.config import Optimizer
from job.optim.adamx import AdamX
from job.optim.adamz import AdamZ

__all__ = ["AdamX", "AdamZ", "make_optimizer"]

TABLE: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
}


def make_optimizer(parameters: Iterable[nn.Parameter], config: Optimizer) -> torch.optim.Optimizer:
    """The optimizer over `parameters`; its hyperparameters are the config's keys."""
    keys = config.model_dump(exclude={"name"})
    # fused: one kernel for all parameters instead of several for each.
    return TABLE[config.name](parameters, **keys, fused=True)
