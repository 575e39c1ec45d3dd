"""The main case on its real input: 2,000,000 rows, MLP 10-100-1, MSE, Adam, lr 0.01."""

import statistics
import tempfile
from pathlib import Path

import pytest
import torch

from job.config import load_config
from job.data import load_data
from job.device import choose_device, memory_limit, prepare_torch
from job.model import build_model
from job.train import Metrics, evaluate, train

from .conftest import ROOT


def trained_on_default(*overrides: str) -> Metrics:
    """Trains the shipped job.yaml and measures it on its test rows."""
    config = load_config(str(ROOT / "job.yaml"), ["device=cpu", *overrides])
    prepare_torch(choose_device(config))
    data = load_data(config.data, config.seed_number, memory_limit())
    model = build_model(config, data.training.x, data.training.y)
    with tempfile.TemporaryDirectory() as folder:
        train(model, data, config, torch.device("cpu"), Path(folder), lambda _: None)
    return evaluate(model, data.test, config.train, torch.device("cpu"))


def test_the_median_of_five_seeds_is_within_4_percent_of_the_noise() -> None:
    losses = [trained_on_default(f"seed={seed}")["mse"] or 0.0 for seed in range(5)]
    assert 1.0 < statistics.median(losses) <= 1.04, losses


def test_the_primers_literal_case_ends_at_its_floor() -> None:
    """Random x, unrelated random y: there is nothing to learn, and the job says so."""
    metrics = trained_on_default("data.kind=noise", "data.noise=2.0")
    assert metrics["r2"] == pytest.approx(0, abs=0.001)
    assert metrics["mse"] == pytest.approx(4, rel=0.01)
    assert metrics["excess_risk"] < 0.01  # type: ignore[operator]
