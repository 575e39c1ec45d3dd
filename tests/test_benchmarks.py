"""The benchmarks run, and docs say what they measured."""

from pathlib import Path

from benchmarks import optimizers, speed
from benchmarks.optimizers import Run

TINY = ("data.samples=400", "train.batch_size=100", "train.epochs=2")


def test_every_optimizer_and_kind_is_measured(tmp_path: Path) -> None:
    runs = list(optimizers.measure(rates=(0.01,), seeds=(0,), keys=TINY))
    assert {run.kind for run in runs} == set(optimizers.KINDS) >= {"friedman1", "gaussians"}
    names = {"adam", "adamw", "adamx", "adamz", "sgd"}
    assert {run.optimizer for run in runs} == {*names, "adamz, max_lr 10 lr"}
    assert len(runs) == len(optimizers.KINDS) * 6
    assert all(run.steps == [4, 8] and len(run.validation) == 2 for run in runs)
    optimizers.write(runs, tmp_path / "runs.json")
    head, again = optimizers.read(tmp_path / "runs.json")
    assert [run.test for run in again] == [run.test for run in runs]
    assert optimizers.tables(head, again).count("\n| friedman1 |") == 7


def test_one_that_diverged_is_infinite_and_not_the_best() -> None:
    diverged = Run("noise", "adamz", 0.1, 0, [], [], None, None)
    fine = Run("noise", "adamz", 0.01, 0, [8], [0.5], 0.5, 0.01)
    head = {"command": "c", "machine": "m", "torch": "t", "keys": []}
    assert optimizers.best_rate([diverged, fine], "noise", "adamz") == 0.01
    assert "| noise | adamz | **0.5** (0.5) | inf (inf) |" in optimizers.tables(
        head, [fine, diverged]
    )


def test_the_page_holds_what_was_measured() -> None:
    page = (optimizers.DOCS / "optimizers.md").read_text()
    measured = page.partition(optimizers.BEGIN)[2].partition(optimizers.END)[0]
    head, runs = optimizers.read(optimizers.RESULTS)
    assert measured.strip() == optimizers.tables(head, runs)
    assert {run.kind for run in runs} == set(optimizers.KINDS), "measure and draw again"
    assert "(optimizers.svg)" in page


def test_the_jobs_speed_is_measured_from_the_real_training() -> None:
    assert speed.job_speed(8, 800, 0.01, 256) > 0


def test_the_tables_of_speed_are_ratios_of_medians() -> None:
    speeds = {"100 256 job": [4e6, 2e6, 3e6], "100 256 jax": [6e6, 9e6, 5e6]}
    body = {"machine": "m", "date": "d", "rounds": 3, "flops": 3e10, "bytes": 1e10}
    said = speed.tables({**body, "speeds": speeds})
    assert "| 100 | 256 | 0.50 |" in said
    # Operations of a row: forward 2 (11 100 + 101), weights' gradients as many, delta 2 100.
    assert speed.flops(100) == 2 * (2 * 1100 + 2 * 101 + 100) == 5004
    assert "| 100 | 256 | 3.00 (2.00-4.00) | 6.00 (5.00-9.00) | 50% |" in said
