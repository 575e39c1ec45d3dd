"""Metrics of a model on held-out rows, in the target's own units.

Shapes: N rows, F features, O outputs or K classes.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from job.config import Train
from job.data import Split
from job.errors import Diverged
from job.model import MLP
from job.train.loss import Objective

Metrics = dict[str, float | None]

# The smallest positive float32: a probability that rounds to 0 counts as that much.
SMALLEST = 2.0**-149

# Rows that go through the model at once: bounds the memory of the hidden layers.
ROWS_AT_ONCE = 8192


@torch.no_grad()
def predict(model: nn.Module, x: NDArray[np.float32], device: torch.device) -> NDArray[np.float32]:
    """The model's answers (N, O) to raw features x (N, F), computed on `device`."""
    rows = torch.split(torch.from_numpy(x), ROWS_AT_ONCE)
    answers: NDArray[np.float32] = torch.cat([model(r.to(device)).cpu() for r in rows]).numpy()
    return answers


def evaluate(model: MLP, rows: Split, config: Train, device: torch.device) -> Metrics:
    """Metrics of the model against the noisy y and the truth f(x); `loss` is the training's.

    For regression with answers p (N, O), `mse` = mean (p - y)^2 and `mae` = mean |p - y|;
    `r2` = 1 - sum (y - p)^2 / sum (y - mean y)^2, the mean over the outputs, and None where a y is
    constant; `excess_risk` = mean (p - f(x))^2: what is lost besides the noise, never negative.

    For classes with probabilities p (N, K), `log_loss` = mean -log p_y;
    `accuracy` is the share of rows whose class has the largest p;
    `excess_risk` = mean of sum_k f_k log(f_k / p_k), the KL divergence, never negative. It is None
    where the truth is not known.

    Raises:
        Diverged: an answer is not finite.
    """
    answers = predict(model, rows.x, device).astype(np.float64)
    if not np.isfinite(answers).all():
        raise Diverged(
            "the model's answers to held-out rows are not all finite; lower train.optimizer.lr"
        )
    objective = Objective(config, model)
    if classes := objective.scaling is None:
        answers = np.maximum(answers, SMALLEST)
    loss = objective.of_answers(*(torch.from_numpy(v).to(device) for v in (answers, rows.y)))
    return {"loss": loss, **(_of_classes if classes else _of_numbers)(answers, rows)}


def _of_numbers(answers: NDArray[np.float64], rows: Split) -> Metrics:
    errors = np.square(answers - rows.y).mean(axis=0)
    variances = np.square(rows.y - rows.y.mean(axis=0, dtype=np.float64)).mean(axis=0)
    return {
        "mse": float(errors.mean()),
        "mae": float(np.mean(np.abs(answers - rows.y))),
        "r2": float(np.mean(1 - errors / variances)) if variances.all() else None,
        "excess_risk": None
        if rows.truth is None
        else float(np.mean(np.square(answers - rows.truth))),
    }


def _of_classes(answers: NDArray[np.float64], rows: Split) -> Metrics:
    y = rows.y[:, 0].astype(np.intp)
    log_loss = float(-np.mean(np.log(answers[np.arange(len(y)), y])))
    return {
        "log_loss": log_loss,
        "accuracy": float(np.mean(answers.argmax(axis=1) == y)),
        "excess_risk": None if rows.truth is None else _mean_divergence(rows.truth, answers),
    }


def _mean_divergence(truth: NDArray[np.float64], answers: NDArray[np.float64]) -> float:
    divergence = np.sum(truth * np.log(np.maximum(truth, SMALLEST) / answers), axis=1)
    # Rounding may leave a model that is the truth below 0 by some 1e-17.
    return max(0.0, float(np.mean(divergence)))
