"""Checkpoints: bit for bit, whole or not at all, and a damaged one is never believed."""

import ast
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from job import durable, interrupt
from job.config import Config, load_config
from job.data import load_data
from job.errors import Interrupted
from job.model import MLP, build_model
from job.train import EpochRecord, Training, train
from job.train.checkpoint import STATE, TENSORS, load_checkpoint, save_checkpoint

from .conftest import ROOT

CPU = torch.device("cpu")


def same(one: Any, other: Any) -> bool:
    """Equal in values, types, shapes and bits."""
    if isinstance(one, torch.Tensor):
        return (
            isinstance(other, torch.Tensor)
            and one.dtype == other.dtype
            and one.shape == other.shape
            and one.numpy().tobytes() == other.numpy().tobytes()
        )
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


def test_a_state_comes_back_bit_for_bit(tmp_path: Path) -> None:
    shared = torch.arange(6.0)
    state = {
        "tensors": {0: shared, 1: shared, 7: torch.tensor(float("nan")), "t": shared.view(2, 3).T},
        "types": [torch.tensor([1, 2]), torch.tensor(True), torch.zeros(0, 3), torch.tensor(1.5)],
        "plain": {"float": 0.1 + 0.2, "tiny": 5e-324, "int": 2**60, "none": None, "text": "ü\n"},
        "empty": [{}, []],
    }
    save_checkpoint(tmp_path, 5, state)
    got = load_checkpoint(tmp_path)
    assert got is not None
    assert same(got, state)


def test_two_are_kept(tmp_path: Path) -> None:
    for step in (9, 10, 11, 100):
        save_checkpoint(tmp_path, step, {"step": step})
    assert {path.name for path in tmp_path.iterdir()} == {"11", "100"}
    assert load_checkpoint(tmp_path) == {"step": 100}


def test_none_is_none(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path) is None
    assert load_checkpoint(tmp_path / "nowhere") is None


def damaged(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "flipped":
        content[len(content) // 2] ^= 1
    elif how == "cut":
        del content[-1:]
    elif how == "empty":
        content.clear()
    path.unlink()
    if how != "missing":
        path.write_bytes(content)


@pytest.mark.parametrize("name", [STATE, TENSORS])
@pytest.mark.parametrize("how", ["flipped", "cut", "empty", "missing"])
def test_a_damaged_one_falls_back_to_the_one_before_and_says_so(
    name: str, how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, step, {"tensor": torch.full((9,), float(step))})
    damaged(tmp_path / "2" / name, how)
    got = load_checkpoint(tmp_path)
    assert got is not None
    assert got["tensor"][0] == 1
    assert "the checkpoint of step 2 is damaged" in caplog.text
    assert "going back to the one before" in caplog.text
    assert not (tmp_path / "2").exists()
    damaged(tmp_path / "1" / name, how)
    assert load_checkpoint(tmp_path) is None


@pytest.mark.parametrize("byte", range(0, 700, 7))
def test_no_flipped_bit_is_believed(byte: int, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, {"tensor": torch.arange(50.0), "plain": [1, 2.5, "x"]})
    files = [tmp_path / "1" / name for name in (TENSORS, STATE)]
    sizes = [file.stat().st_size for file in files]
    file, at = (files[0], byte) if byte < sizes[0] else (files[1], byte - sizes[0])
    content = bytearray(file.read_bytes())
    content[at % len(content)] ^= 1 << (byte % 8)
    file.write_bytes(content)
    assert load_checkpoint(tmp_path) is None


def test_one_that_cannot_be_written_leaves_those_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, 1, {"step": 1})

    def full(_: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(tmp_path, 2, {"step": 2})
    assert {path.name for path in tmp_path.iterdir()} == {"1"}
    assert load_checkpoint(tmp_path) == {"step": 1}


def test_all_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, on_disk: list[str]) -> None:
    """Each file and the folder before the rename, the folder above after it."""
    save_checkpoint(tmp_path / "all", 7, {"tensor": torch.ones(2)})
    assert set(on_disk[:2]) == {TENSORS, STATE}
    temporary = on_disk[2]
    assert on_disk[3:] == [f"{temporary} -> 7", "all"]


def test_nothing_in_the_package_unpickles() -> None:
    """Neither torch.load nor pickle: what is read can do nothing."""
    for path in (ROOT / "job").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                assert ast.unparse(node) not in ("torch.load", "np.load.pickle"), path
            if isinstance(node, ast.Import):
                assert not {a.name for a in node.names} & {"pickle", "dill", "joblib"}, path
            if isinstance(node, ast.ImportFrom):
                assert node.module != "pickle", path
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert ast.unparse(node.value) == "False", path


# The training, stopped at every step.


def prepared(*overrides: str) -> Config:
    keys = ["data.samples=1000", "train.batch_size=300", "train.epochs=3", "threads=1"]
    return load_config(None, [*keys, *overrides])


def attempt(config: Config, folder: Path) -> tuple[Training, MLP, list[EpochRecord]]:
    data = load_data(config.data, config.seed_number, 2**40)
    model = build_model(config, data.training.x, data.training.y, len(data.classes))
    records: list[EpochRecord] = []
    return train(model, data, config, CPU, folder, records.append), model, records


# There is nothing to learn: after two epochs the validation loss rises.
WORSENING = ("data.kind=noise", "train.schedule.name=constant", "train.optimizer.lr=0.005")


@pytest.mark.parametrize(
    "keys",
    [
        (),
        ("train.optimizer={name: adamw, weight_decay: 0.1}", "train.schedule.name=linear"),
        (
            "train.optimizer={name: sgd, momentum: 0.9, nesterov: true, lr: 0.1}",
            "train.schedule.name=constant",
        ),
        ("train.optimizer={name: adamx, weight_decay: 0.1}",),
        (
            "train.optimizer={name: adamz, patience: 4, stagnation_period: 2}",
            "train.schedule.name=constant",
        ),
        ("data.kind=gaussians", "train.loss=cross_entropy"),
        ("model.dropout=0.3", "train.schedule.warmup=4", "train.grad_clip=0.1"),
        ("train.precision=bfloat16", "model.dropout=0.1"),
        (*WORSENING, "train.early_stopping.patience=1", "train.epochs=9"),  # ends after 3
        (*WORSENING, "train.early_stopping.patience=5"),  # does not, but the second is the best
    ],
)
def test_stopped_after_every_step_it_ends_as_if_never_stopped(
    keys: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = prepared(*keys)
    with tempfile.TemporaryDirectory() as folder:
        whole, model, records = attempt(config, Path(folder))
    monkeypatch.setattr(interrupt, "requested", lambda: True)
    monkeypatch.setattr(interrupt, "check", stop)
    stops = 0
    while True:
        try:
            training, again, seen = attempt(config, tmp_path)
            break
        except Interrupted:
            stops += 1
            # What asks at the end of the last epoch comes after the work is done.
            if stops == whole.steps + len(whole.epochs):
                monkeypatch.undo()
    assert whole.steps == 9
    assert whole.best == (2 if config.train.early_stopping else 3)
    assert stops == 12  # after each of 9 steps, and after each of 3 epochs
    assert seen == records
    assert (training.steps, training.rows, training.epochs) == (9, whole.rows, whole.epochs)
    assert training.best == whole.best
    assert same(model.state_dict(), again.state_dict())


def stop() -> None:
    raise Interrupted("stop")


def test_at_most_one_interval_is_done_again(tmp_path: Path) -> None:
    for every, kept in (("{every: 2}", {"6", "9"}), ("{every: 1}", {"6", "9"})):
        attempt(prepared(f"train.checkpoint={every}"), tmp_path / every)
        assert {path.name for path in (tmp_path / every).iterdir()} == kept
    attempt(prepared("train.checkpoint={every: 3}"), tmp_path / "three")
    assert {path.name for path in (tmp_path / "three").iterdir()} == {"9"}
    attempt(prepared("train.checkpoint={every_seconds: 1e-9}"), tmp_path / "seconds")
    assert {path.name for path in (tmp_path / "seconds").iterdir()} == {"8", "9"}
    attempt(prepared("train.checkpoint={every_seconds: 1e9}"), tmp_path / "never")
    assert {path.name for path in (tmp_path / "never").iterdir()} == {"9"}


@pytest.mark.parametrize(
    "keys", [(), (*WORSENING, "train.early_stopping.patience=1", "train.epochs=9")]
)
def test_a_finished_training_is_not_done_again(keys: tuple[str, ...], tmp_path: Path) -> None:
    first, model, records = attempt(prepared(*keys), tmp_path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    second, again, seen = attempt(prepared(*keys), tmp_path)
    assert (second, seen) == (first, records)
    assert same(model.state_dict(), again.state_dict())
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before
    assert np.isfinite(second.samples_per_second)
