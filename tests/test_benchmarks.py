"""The benchmark of the optimizers runs, and docs/optimizers.md says what it measured."""

from pathlib import Path

from benchmarks import optimizers
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
