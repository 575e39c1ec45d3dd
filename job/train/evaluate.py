"""Metrics of a model on held-out rows, in the target's own units.

Shapes: N rows, F features, O outputs.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from job.data import Split
from job.errors import Diverged

Metrics = dict[str, float | None]

# Rows that go through the model at once: bounds the memory of the hidden layers.
ROWS_AT_ONCE = 8192


@torch.no_grad()
def predict(model: nn.Module, x: NDArray[np.float32], device: torch.device) -> NDArray[np.float32]:
    """The model's answers (N, O) to raw features x (N, F), computed on `device`."""
    rows = torch.split(torch.from_numpy(x), ROWS_AT_ONCE)
    answers: NDArray[np.float32] = torch.cat([model(r.to(device)).cpu() for r in rows]).numpy()
    return answers


def evaluate(model: nn.Module, rows: Split, device: torch.device) -> Metrics:
    """Metrics of the model against the noisy y and the known truth f(x).

    `loss` is the training's loss, here the MSE.
    `r2` = 1 - sum (y - p)^2 / sum (y - mean y)^2, and None where y is constant.
    `excess_risk` = mean (p - f(x))^2: what is lost besides the noise, never negative.

    Raises:
        Diverged: an answer is not finite.
    """
    answers = predict(model, rows.x, device).astype(np.float64)
    if not np.isfinite(answers).all():
        raise Diverged(
            "the model's answers to held-out rows are not all finite; lower train.optimizer.lr"
        )
    mse = float(np.mean(np.square(answers - rows.y)))
    variance = float(np.mean(np.square(rows.y - rows.y.mean(axis=0, dtype=np.float64))))
    return {
        "loss": mse,
        "mse": mse,
        "mae": float(np.mean(np.abs(answers - rows.y))),
        "r2": 1 - mse / variance if variance > 0 else None,
        "excess_risk": float(np.mean(np.square(answers - rows.truth))),
    }
