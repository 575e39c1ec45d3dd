"""The training: epochs of shuffled batches on rows that lie on the device.

Shapes: N training rows, B rows of a batch, F features, O outputs.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from job import interrupt
from job.config import Checkpoint, Config
from job.data import Dataset, Split
from job.errors import Diverged
from job.log import event
from job.model import MLP, Unstandardise
from job.optim import make_optimizer
from job.streams import Purpose, generator
from job.train.checkpoint import load_checkpoint, save_checkpoint
from job.train.evaluate import Metrics, evaluate
from job.train.schedule import learning_rate_factor
from job.train.step import training_step

LOSSES: dict[str, type[nn.Module]] = {
    "mse": nn.MSELoss,
    "cross_entropy": nn.CrossEntropyLoss,  # of what the softmax is applied to
}


@dataclass(frozen=True)
class EpochRecord:
    """One line of metrics.jsonl: losses in the target's units, no times or rates."""

    epoch: int
    steps: int
    learning_rate: float  # of the epoch's last step
    training_loss: float  # mean over the epoch, each batch before its own update
    validation: Metrics


@dataclass
class Training:
    """How far the training is, and what it did so far."""

    epochs: list[EpochRecord] = field(default_factory=list)
    steps: int = 0
    loss_sum: float = 0.0  # over the rows of the epoch that is under way
    rows: int = 0
    seconds: float = 0.0  # shuffling, gathering and steps; no evaluation, no checkpoints

    @property
    def samples_per_second(self) -> float:
        return self.rows / self.seconds

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Training":
        """The inverse of `dataclasses.asdict`."""
        return cls(**{**state, "epochs": [EpochRecord(**entry) for entry in state["epochs"]]})


def train(
    model: MLP,
    data: Dataset,
    config: Config,
    device: torch.device,
    checkpoints: Path,
    on_epoch: Callable[[EpochRecord], None],
) -> Training:
    """Trains `model` in place on the training rows; it ends on `device`, in eval mode.

    Goes on from the newest checkpoint in the folder `checkpoints`, if there is one, and leaves
    its own there; the last is that of the end. `on_epoch` is called with the record of each epoch
    as it ends, those that an earlier attempt made included.

    Raises:
        Diverged: a loss or a gradient was not finite; names epoch and step.
        Interrupted: a signal has come; the state is saved.
    """
    model.to(device)
    x, y, unit = _as_trained(model, data.training, device)
    optimizer = make_optimizer(model.network.parameters(), config.train.optimizer)
    training = _restored(checkpoints, model, optimizer)
    for record in training.epochs:
        on_epoch(record)
    saver = Saver(checkpoints, config.train.checkpoint, model, optimizer, training)

    for epoch in range(len(training.epochs) + 1, config.train.epochs + 1):
        lr = _rest_of_epoch(epoch, model, optimizer, x, y, config, training, saver)
        model.eval()
        metrics = evaluate(model, data.validation, config.data.task, device)
        loss = unit * training.loss_sum / len(x)
        record = EpochRecord(epoch, training.steps, lr, loss, metrics)
        training.epochs.append(record)
        training.loss_sum = 0.0
        on_epoch(record)
        event(
            "epoch",
            f"epoch {epoch}/{config.train.epochs}  loss {record.training_loss:.5g}  "
            f"validation {metrics['loss']:.5g}  {training.samples_per_second:,.0f} rows/s",
            epoch=epoch,
            training_loss=record.training_loss,
            validation=metrics,
            samples_per_second=training.samples_per_second,
        )
        saver.after_epoch(last=epoch == config.train.epochs)
    return training


def _rest_of_epoch(
    epoch: int,
    model: MLP,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    config: Config,
    training: Training,
    saver: "Saver",
) -> float:
    """The steps of `epoch` that are not done yet; returns the last learning rate."""
    loss_function = LOSSES[config.train.loss]()
    steps_per_epoch = -(-len(x) // config.train.batch_size)
    schedule = partial(
        learning_rate_factor,
        config.train.schedule.name,
        steps=config.train.epochs * steps_per_epoch,
    )
    model.train()
    batches = _shuffled(len(x), config.train.batch_size, config.seed, epoch, x.device)
    done = training.steps - (epoch - 1) * steps_per_epoch
    stopwatch = time.perf_counter()
    for rows in batches[done:]:
        if config.train.schedule.name != "constant":  # which leaves lr to the optimizer
            for group in optimizer.param_groups:
                group["lr"] = config.train.optimizer.lr * schedule(training.steps)
        training.steps += 1
        try:
            loss = training_step(model.network, loss_function, optimizer, x[rows], y[rows])
        except Diverged as reason:
            raise Diverged(
                f"training diverged at step {training.steps} in epoch {epoch}: {reason}; "
                f"lower train.optimizer.lr"
            ) from None
        training.loss_sum += loss * len(rows)
        training.rows += len(rows)
        if saver.due:
            training.seconds += time.perf_counter() - stopwatch
            saver.within_epoch()
            stopwatch = time.perf_counter()
    training.seconds += time.perf_counter() - stopwatch
    return float(optimizer.param_groups[0]["lr"])


@torch.no_grad()
def _as_trained(model: MLP, rows: Split, device: torch.device) -> tuple[Tensor, Tensor, float]:
    """The training rows as the network and the loss see them, on the device, and the loss's unit.

    Standardised x (N, F) and y (N, O), where a loss of 1 is the target's variance; or for classes
    their numbers y (N,), where the loss has no unit.
    """
    x: Tensor = model.input(torch.from_numpy(rows.x).to(device))
    y = torch.from_numpy(rows.y).to(device)
    if isinstance(model.output, Unstandardise):
        unit = float(model.output.std.square().mean())
        return x, (y - model.output.mean) / model.output.std, unit
    return x, y[:, 0].long(), 1.0


def _shuffled(n: int, size: int, seed: int, epoch: int, device: torch.device) -> Sequence[Tensor]:
    """Batches of row numbers, every row once, in an order that (seed, epoch) gives."""
    order = generator(seed, Purpose.SHUFFLE, epoch).permutation(n)
    return torch.split(torch.from_numpy(order).to(device), size)


@dataclass
class Saver:
    """Decides when a checkpoint is due, and writes it."""

    folder: Path
    config: Checkpoint
    model: MLP
    optimizer: torch.optim.Optimizer
    training: Training
    last: float = field(default_factory=time.monotonic)

    @property
    def due(self) -> bool:
        """Is one wanted now, in the middle of an epoch?"""
        seconds = self.config.every_seconds
        late = seconds is not None and time.monotonic() - self.last >= seconds
        return late or interrupt.requested()

    def within_epoch(self) -> None:
        """Saves.

        Raises:
            Interrupted: a signal has asked for it.
        """
        self._save()
        interrupt.check()

    def after_epoch(self, *, last: bool) -> None:
        """Saves where the epoch's number or the time says so, and after the last.

        Raises:
            Interrupted: a signal has come; it is saved.
        """
        every = self.config.every
        if last or self.due or (every is not None and len(self.training.epochs) % every == 0):
            self._save()
        interrupt.check()

    def _save(self) -> None:
        state = {
            "network": self.model.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "training": asdict(self.training),
        }
        save_checkpoint(self.folder, self.training.steps, state)
        self.last = time.monotonic()


def _restored(folder: Path, model: MLP, optimizer: torch.optim.Optimizer) -> Training:
    """Puts model and optimizer where the newest checkpoint left them, and says how far that is."""
    state = load_checkpoint(folder)
    if state is None:
        return Training()
    model.network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    training = Training.from_state(state["training"])
    event(
        "resumed",
        f"going on after step {training.steps}, {len(training.epochs)} epochs are done",
        steps=training.steps,
        epochs=len(training.epochs),
    )
    return training
