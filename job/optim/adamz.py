"""AdamZ: Adam with a learning rate that listens to the loss."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT


class AdamZ(torch.optim.AdamW):
    """AdamZ of I. Zaznov, A. Badii, A. Dupont and J. Kunkel (2024, arXiv 2411.15375; Neural
    Computing and Applications 37:26887, 2025): the learning rate control of the authors' package,
    with the gradient clipping of their paper, which the package leaves out.

    A step appends its loss L_t to the history and adjusts the learning rate:

        once there are `patience` losses, L_t among them:
            overshoot    L_t >= max(last `patience` losses)               lr *= overshoot_factor
            stagnation   std(last `stagnation_period` losses)
                         < stagnation_threshold std(last `patience`)      lr *= stagnation_factor
        always:          lr = min(max(lr, min_lr), max_lr)

    Both rules may hold at once; std is that of the population, over as many losses as there are.
    Then the gradients of all groups together are clipped to norm `max_grad_norm`, in place, as by
    torch.nn.utils.clip_grad_norm_, and torch.optim.AdamW takes its step at that lr: Adam's, where
    the decoupled `weight_decay` is 0.

    All hyperparameters belong to the parameter group, whose "lr" is the learning rate in force and
    whose "losses" are the history, plain numbers, so that `state_dict` holds both. The state of a
    parameter is that of AdamW.

    Weaknesses: a flat loss counts as overshoot, so that lr falls to min_lr. A steady linear fall
    counts as stagnation (at the default windows the ratio is 0.0995), so that lr may climb to
    max_lr. What else sets lr, a schedule for one, undoes the control. A float32 gradient of norm
    above 1.8e19 is clipped to 0. Under several processes the loss must be averaged over them
    first, or their learning rates part.

    Raises:
        ValueError: a hyperparameter is outside its bounds.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        overshoot_factor: float = 0.5,
        stagnation_factor: float = 1.2,
        stagnation_threshold: float = 0.2,
        patience: int = 100,
        stagnation_period: int = 10,
        max_grad_norm: float = 1.0,
        min_lr: float = 1e-7,
        max_lr: float = 1.0,
        weight_decay: float = 0.0,
    ) -> None:
        control = {
            "overshoot_factor": overshoot_factor,
            "stagnation_factor": stagnation_factor,
            "stagnation_threshold": stagnation_threshold,
            "patience": patience,
            "stagnation_period": stagnation_period,
            "max_grad_norm": max_grad_norm,
            "min_lr": min_lr,
            "max_lr": max_lr,
        }
        for name, valid, bounds in (
            ("overshoot_factor", 0 < overshoot_factor <= 1, "in (0, 1]"),
            ("stagnation_factor", 1 <= stagnation_factor < math.inf, "finite and at least 1"),
            ("stagnation_threshold", 0 <= stagnation_threshold < math.inf, "finite, at least 0"),
            ("patience", _is_count(patience), "an integer of at least 1"),
            ("stagnation_period", _is_count(stagnation_period), "an integer of at least 1"),
            ("max_grad_norm", max_grad_norm > 0, "above 0"),
            ("min_lr", 0 <= min_lr < math.inf, "finite and at least 0"),
            ("max_lr", min_lr <= max_lr < math.inf, f"finite and at least min_lr ({min_lr})"),
        ):
            if not valid:
                raise ValueError(f"AdamZ: {name} must be {bounds}, got {control[name]!r}")
        super().__init__(params, lr, betas, eps, weight_decay)
        # AdamW takes no further defaults, so they are added to what it made of the groups.
        self.defaults |= {**control, "losses": []}
        for group in self.param_groups:
            group.update({**self.defaults, **group})

    @torch.no_grad()
    def step(  # type: ignore[override]
        self,
        closure: Callable[[], float | Tensor] | None = None,
        *,
        loss: float | Tensor | None = None,
    ) -> float | Tensor:
        """One update by the loss, which `loss` gives, or else `closure`; returns the loss.

        `closure` is called first, with gradients enabled, to compute loss and gradients again.

        Raises:
            ValueError: no loss is given, or two are, or it is not finite; no weight has changed.
        """
        if closure is not None and loss is not None:
            raise ValueError("AdamZ: give the loss either by closure or by loss=, not by both")
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if loss is None:
            raise ValueError(
                "AdamZ steers its learning rate by the loss: call step(loss=loss), or step(closure)"
                " with a closure that returns it"
            )
        value = loss.item() if isinstance(loss, Tensor) else float(loss)
        if not math.isfinite(value):
            raise ValueError(f"AdamZ: the loss is {value}; it must be finite")
        for group in self.param_groups:
            _listen(group, value)
        self._clip()
        super().step()
        return loss

    def _clip(self) -> None:
        """torch.nn.utils.clip_grad_norm_ over all groups, each with its own `max_grad_norm`."""
        parameters = [p for group in self.param_groups for p in group["params"]]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        for group in self.param_groups:
            torch.nn.utils.clip_grads_with_norm_(group["params"], group["max_grad_norm"], norm)


def _listen(group: dict[str, Any], loss: float) -> None:
    """Appends the loss to the group's history and adjusts its learning rate."""
    patience, period = group["patience"], group["stagnation_period"]
    # A new list: one that a state_dict holds stays as it was.
    losses = [*group["losses"], loss][-max(patience, period) :]
    lr = group["lr"]
    if len(losses) >= patience:
        window = losses[-patience:]
        if loss >= max(window):
            lr *= group["overshoot_factor"]
        if _std(losses[-period:]) < group["stagnation_threshold"] * _std(window):
            lr *= group["stagnation_factor"]
    group["lr"] = min(max(lr, group["min_lr"]), group["max_lr"])
    group["losses"] = losses


def _std(losses: list[float]) -> float:
    """Population standard deviation, exactly 0 where all are equal: their mean may be rounded."""
    return float(np.std(np.subtract(losses, losses[-1])))


def _is_count(value: object) -> bool:
    return isinstance(value, int) and value >= 1
