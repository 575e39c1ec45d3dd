"""A gate passes only what is seen to reach it."""

import json
import math
import shutil
from pathlib import Path

import pytest

from job.config import Gate, load_config
from job.errors import QualityUnmet
from job.quality import require_quality
from job.train.evaluate import Metrics

from .conftest import SMALL, Job
from .test_report import words

METRICS: Metrics = {"r2": 0.5, "mse": 2.0, "excess_risk": None, "mae": math.nan}


@pytest.mark.parametrize(
    ("name", "gate", "passes"),
    [
        ("r2", Gate(min=0.5), True),
        ("r2", Gate(min=0.5000001), False),
        ("mse", Gate(max=2.0), True),
        ("mse", Gate(max=1.9999999), False),
        ("mse", Gate(min=1.0, max=3.0), True),
        ("mse", Gate(min=2.5, max=3.0), False),
        ("excess_risk", Gate(max=1e300), False),
        ("mae", Gate(max=1e300), False),
        ("mae", Gate(min=-1e300), False),
    ],
)
def test_a_gate(name: str, gate: Gate, passes: bool) -> None:
    if passes:
        require_quality({name: gate}, METRICS)
    else:
        with pytest.raises(QualityUnmet, match=f"test {name} is .* and must be at"):
            require_quality({name: gate}, METRICS)


def test_every_unmet_gate_is_named_with_its_numbers() -> None:
    gates = {"r2": Gate(min=0.9), "mse": Gate(max=9), "excess_risk": Gate(min=0, max=1)}
    with pytest.raises(QualityUnmet) as caught:
        require_quality(gates, METRICS)
    assert str(caught.value) == (
        "the model misses a quality gate: test r2 is 0.5 and must be at least 0.9; "
        "test excess_risk is unknown and must be at least 0 and at most 1"
    )


def test_every_metric_can_be_a_gate() -> None:
    config = load_config(None, ["quality.metrics={r2: {min: 0.9}, excess_risk: {max: 1}}"])
    assert set(config.quality.metrics) == {"r2", "excess_risk"}


def test_unmet_leaves_evidence_and_the_last_good_model(
    output: Path, job: Job, tmp_path: Path
) -> None:
    folder = shutil.copytree(output, tmp_path / "out", symlinks=True)
    good = (folder / "latest").resolve()
    gate = "quality.metrics={r2: {min: 0.999}}"
    unmet = job("train", *SMALL, gate, "--output", str(folder), "--run-id", "bad")
    assert (unmet.returncode, unmet.stdout) == (82, "")
    assert "test r2 is 0." in json.loads(unmet.stderr.splitlines()[-1])["message"]
    assert (folder / "latest").resolve() == good
    evidence = folder / "failed" / "bad"
    assert {path.name for path in evidence.iterdir()} == {"report.html", "metrics.jsonl"}
    said = words((evidence / "report.html").read_text())
    assert said.startswith("QUALITY (82): nothing was published")
    assert "r2" in said
    assert "must be at least 0.999" in said
    assert json.loads((evidence / "metrics.jsonl").read_text().splitlines()[0])["epoch"] == 1
    assert not list((folder / "work" / "runs").iterdir())
