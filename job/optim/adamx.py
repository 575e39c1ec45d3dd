"""AdamX: Adam whose second moment is a maximum that follows the first moment's decay."""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT


class AdamX(torch.optim.Optimizer):
    """AdamX of T. T. Phuong and L. T. Phong, On the Convergence Proof of AMSGrad and a New Version
    (2019, arXiv 1904.03590), Algorithm 2, without the projection. With gradient g_t at step t:

        m_t = b1_t m_{t-1} + (1 - b1_t) g_t                                              m_0 = 0
        v_t = b2 v_{t-1} + (1 - b2) g_t^2                                                v_0 = 0
        vhat_1 = v_1,  vhat_t = max(((1 - b1_t) / (1 - b1_{t-1}))^2 vhat_{t-1}, v_t)     elementwise
        x_{t+1} = x_t - lr m_t / (sqrt(vhat_t) + eps)

    `beta1_schedule`: "exponential", b1_t = b1 beta1_decay^(t-1), or "harmonic", b1_t = b1 / t,
    which leaves `beta1_decay` unused. beta1_decay = 1 is the original AMSGrad; torch's differs in
    that it corrects the bias. `eps` may be 0: a weight whose gradient was always 0 does not move.
    `weight_decay` is decoupled: x is first multiplied by 1 - lr weight_decay.

    All hyperparameters belong to the parameter group. State of a parameter that has had a gradient:
    `step`, an integer; `exp_avg`, `exp_avg_sq` and `max_exp_avg_sq` (m, v, vhat), shaped like it.

    Weakness: nothing corrects the bias. At the default betas the first step is 3.16 lr, growing to
    about 6.7 lr by step 12 where the gradient is steady; take a smaller lr than with Adam.

    Raises:
        ValueError: a hyperparameter is outside its bounds.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        beta1_decay: float = 0.999,
        beta1_schedule: Literal["exponential", "harmonic"] = "exponential",
        weight_decay: float = 0.0,
    ) -> None:
        for name, value, valid, bounds in (
            ("lr", lr, 0 <= lr < math.inf, "finite and at least 0"),
            ("betas", betas, [0 <= b < 1 for b in betas] == [True] * 2, "two numbers in [0, 1)"),
            ("eps", eps, 0 <= eps < math.inf, "finite and at least 0"),
            ("beta1_decay", beta1_decay, 0 < beta1_decay <= 1, "in (0, 1]"),
            (
                "beta1_schedule",
                beta1_schedule,
                beta1_schedule in ("exponential", "harmonic"),
                "'exponential' or 'harmonic'",
            ),
            ("weight_decay", weight_decay, 0 <= weight_decay < math.inf, "finite and at least 0"),
        ):
            if not valid:
                raise ValueError(f"AdamX: {name} must be {bounds}, got {value!r}")
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "beta1_decay": beta1_decay,
            "beta1_schedule": beta1_schedule,
            "weight_decay": weight_decay,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient; returns what `closure` returned.

        `closure`, if given, is called first, with gradients enabled, to compute the loss again.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    _update(parameter, parameter.grad, self.state[parameter], group)
        return loss


def _update(x: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    if not state:
        state["step"] = torch.tensor(0)
        for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
            state[name] = torch.zeros_like(x)
    state["step"] += 1
    step = int(state["step"])
    # Step 1 has no step before it: there vhat is 0, and any finite ratio gives vhat_1 = v_1.
    beta1, beta1_before = _beta1(group, step), _beta1(group, max(step - 1, 1))
    beta2 = group["betas"][1]
    m, v, vhat = state["exp_avg"], state["exp_avg_sq"], state["max_exp_avg_sq"]

    m.lerp_(gradient, 1 - beta1)
    v.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    vhat.mul_(((1 - beta1) / (1 - beta1_before)) ** 2)
    torch.maximum(vhat, v, out=vhat)
    denominator = vhat.sqrt().add_(group["eps"])
    denominator.masked_fill_(denominator == 0, 1)  # eps = 0 and no gradient so far: m is 0 too

    x.mul_(1 - group["lr"] * group["weight_decay"])
    x.addcdiv_(m, denominator, value=-group["lr"])


def _beta1(group: dict[str, Any], step: int) -> float:
    """b1_t of step t, from 1."""
    beta1: float = group["betas"][0]
    if group["beta1_schedule"] == "harmonic":
        return beta1 / step
    decay: float = group["beta1_decay"]
    return beta1 * decay ** (step - 1)
