"""What the tests hold the optimizers against: their equations again, in NumPy and float64."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import safetensors.torch
import torch

Array = np.ndarray[Any, np.dtype[np.float64]]


def parameter(values: Any, dtype: torch.dtype = torch.float64) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.tensor(values, dtype=dtype))


def adamx(
    x: Array,
    gradients: Array,
    b1: Sequence[float],
    *,
    lr: float = 1e-3,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> tuple[list[Array], list[Array]]:
    """x and vhat after each step; `b1` has b1_t of each step, vhat is its closed form."""
    m, v, xs, vhats = np.zeros_like(x), [np.zeros_like(x)], [], []
    for t, g in enumerate(gradients):
        m = b1[t] * m + (1 - b1[t]) * g
        v.append(b2 * v[-1] + (1 - b2) * g**2)
        vhat = np.max([((1 - b1[t]) / (1 - b1[s])) ** 2 * v[s + 1] for s in range(t + 1)], axis=0)
        x = x - lr * weight_decay * x - lr * m / (np.sqrt(vhat) + eps)
        xs.append(x)
        vhats.append(vhat)
    return xs, vhats


def adamz_lr(
    losses: Sequence[float],
    lr: float,
    *,
    overshoot_factor: float = 0.5,
    stagnation_factor: float = 1.2,
    stagnation_threshold: float = 0.2,
    patience: int = 100,
    stagnation_period: int = 10,
    min_lr: float = 1e-7,
    max_lr: float = 1.0,
) -> list[float]:
    """The learning rate of each step."""
    rates = []
    for t in range(1, len(losses) + 1):
        if t >= patience:
            window, recent = losses[t - patience : t], losses[max(t - stagnation_period, 0) : t]
            if losses[t - 1] == max(window):
                lr = lr * overshoot_factor
            if np.var(recent) < stagnation_threshold**2 * np.var(window):
                lr = lr * stagnation_factor
        lr = float(np.clip(lr, min_lr, max_lr))
        rates.append(lr)
    return rates


def adam(
    x: Array,
    gradients: Array,
    rates: Sequence[float],
    *,
    max_norm: float,
    weight_decay: float = 0.0,
) -> list[Array]:
    """x after each step at the default betas and eps; gradients clipped to `max_norm`."""
    m, v, xs = np.zeros_like(x), np.zeros_like(x), []
    for t, (g, lr) in enumerate(zip(gradients, rates, strict=True), 1):
        g = g * min(1.0, max_norm / (np.sqrt(np.sum(g**2)) + 1e-6))
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g**2
        step = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        x = x - lr * weight_decay * x - lr * step
        xs.append(x)
    return xs


def draw(steps: int, size: int = 12) -> tuple[Array, Array]:
    """Weights and a gradient for each step; their scale jumps, so that every maximum is needed."""
    random = np.random.default_rng(7)
    scales = 10.0 ** random.uniform(-3, 1, (steps, size))
    return random.normal(size=size) * 3, random.normal(size=(steps, size)) * scales


def require_close(got: torch.Tensor, expected: Array, bound: float) -> None:
    """Within `bound`, relative to max(1, |w|)."""
    assert got.shape == expected.shape
    error = np.abs(got.detach().double().numpy() - expected) / np.maximum(1, np.abs(expected))
    assert error.max() <= bound


def through_files(state_dict: dict[str, Any]) -> dict[str, Any]:
    """A state dict as a checkpoint brings it back: tensors by safetensors, all else by JSON."""
    tensors = {
        f"{number} {name}": value
        for number, state in state_dict["state"].items()
        for name, value in state.items()
    }
    read = safetensors.torch.load(safetensors.torch.save(tensors))
    states: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in read.items():
        number, name = key.split()
        states.setdefault(int(number), {})[name] = value
    groups = json.loads(json.dumps(state_dict["param_groups"], allow_nan=False))
    return {"state": states, "param_groups": groups}
