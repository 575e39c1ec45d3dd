"""The training: epochs of shuffled batches on rows that lie on the device.

Shapes: N training rows, B rows of a batch, F features, O outputs.
"""

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from job import interrupt
from job.config import Checkpoint, Config
from job.data import Dataset
from job.errors import Diverged
from job.log import event, progress
from job.model import MLP, with_dropout
from job.optim import make_optimizer, updater
from job.ranks import Ranks
from job.streams import Purpose, seed_of
from job.train.backprop import Backpropagation, DeviceBackpropagation, why_autograd
from job.train.checkpoint import load_checkpoint, save_checkpoint
from job.train.contention import Contention
from job.train.evaluate import Metrics, evaluate
from job.train.graphs import STEPS, GraphedSteps, why_no_graphs
from job.train.loss import Objective
from job.train.precision import say_if_tf32_is_float32, step_arithmetic
from job.train.schedule import learning_rate_factor
from job.train.shuffle import Shuffle
from job.train.step import Autograd


@dataclass(frozen=True)
class EpochRecord:
    """One line of metrics.jsonl: losses in the target's units, no times or rates."""

    epoch: int
    steps: int
    learning_rate: float  # of the epoch's last step
    training_loss: float  # mean over the epoch, each batch before its own update
    validation: Metrics

    @property
    def validation_loss(self) -> float:
        loss = self.validation["loss"]
        assert loss is not None
        return loss


@dataclass
class Training:
    """How far the training is, and what it did so far."""

    epochs: list[EpochRecord] = field(default_factory=list)
    best: int = 0  # the epoch whose weights the model ends with; the last but for early stopping
    steps: int = 0
    loss_sum: float = 0.0  # over the rows of the epoch that is under way
    rows: int = 0
    rows_by_rank: list[int] = field(default_factory=list)  # of an epoch, those each process takes
    seconds: float = 0.0  # shuffling, gathering and steps; no evaluation, no checkpoints

    @property
    def samples_per_second(self) -> float:
        return self.rows / self.seconds

    @property
    def result(self) -> EpochRecord:
        """The record of the epoch whose weights the model ends with."""
        return self.epochs[self.best - 1]

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
    ranks: Ranks | None = None,
    on_step: Callable[[], None] = lambda: None,
) -> Training:
    """Trains `model` in place on the training rows; it ends on `device`, in eval mode.

    Goes on from the newest checkpoint in the folder `checkpoints`, if there is one, and leaves
    its own there; the last is that of the end. `on_epoch` is called with the record of each epoch
    as it ends, those that an earlier attempt made included; `on_step` before each step, which does
    not come if it raises. Of several `ranks`, all of which call this alike, only the first reads
    and leaves checkpoints.

    Raises:
        Diverged: a loss or a gradient was not finite; names epoch and step.
        Interrupted: a signal has come; the state is saved.
    """
    trainer = Trainer(model, data, config, device, checkpoints, ranks or Ranks())
    for record in trainer.training.epochs:
        on_epoch(record)
    total = config.train.epochs * trainer.rows
    with progress(total, "rows", trainer.training.rows) as advance:
        while not trainer.done:
            on_epoch(trainer.train_epoch(advance, on_step))
            trainer.saver.after_epoch(last=trainer.done)
    trainer.take_best()
    return trainer.training


class Trainer:
    """A model on its way: what its steps need, on the device, and how far it is."""

    def __init__(
        self,
        model: MLP,
        data: Dataset,
        config: Config,
        device: torch.device,
        checkpoints: Path,
        ranks: Ranks,
    ) -> None:
        self.config, self.device, self.validation = config, device, data.validation
        self.ranks = ranks
        self.model = model.to(device)
        self.objective = Objective(config.train, model)
        self.rows = len(data.training.x)
        # Asked at every step: by way of the config they took 2 to 10 % of a small one.
        self.batch_size = config.train.batch_size
        self.steady, self.dropout = config.train.schedule.steady, config.model.dropout > 0
        self.steps_per_epoch = -(-self.rows // self.batch_size)
        self.engine = self._engine(data)
        self.optimizer = make_optimizer(self.engine.parameters, config.train.optimizer)
        self.tf32 = config.train.precision == "tf32"
        if self.tf32:
            say_if_tf32_is_float32(device)
        self.saver = Saver(checkpoints, config.train.checkpoint, model, self.optimizer, ranks)
        self.training = self.saver.training
        self.update = updater(self.optimizer)
        self.graphs = self._graphs()
        self.contention = Contention(torch.get_num_threads() if device.type == "cpu" else 1)
        spare = len(os.sched_getaffinity(0)) > torch.get_num_threads() * ranks.local_size
        ahead = spare or device.type == "cuda"
        self.shuffle = Shuffle(self.rows, config.seed_number, config.train.epochs, ahead=ahead)
        full, rest = divmod(self.rows, self.batch_size)
        share = full * self.batch_size // ranks.size
        self.training.rows_by_rank = [share + rows for rows in ranks.shares(rest)]

    def _engine(self, data: Dataset) -> Backpropagation | Autograd:
        """What takes the steps; holds the training rows, standardised, on the device."""
        config, device, network = self.config, self.device, self.model.network
        with torch.no_grad():
            x = self.model.input(torch.from_numpy(data.training.x).to(device))
            y = self.objective.targets(torch.from_numpy(data.training.y).to(device))
        reason = why_autograd(config, device)
        if reason is None:
            kind = DeviceBackpropagation if device.type == "cuda" else Backpropagation
            return kind(network, x, y, config.train.grad_clip, self.ranks)
        event("autograd", f"torch.autograd computes the gradients, since {reason}", reason=reason)
        return Autograd(
            with_dropout(network, config.model.dropout),
            self.objective.function.to(device),
            x,
            y,
            grad_clip=config.train.grad_clip,
            bfloat16=config.train.precision == "bfloat16",
            ranks=self.ranks,
        )

    def _graphs(self) -> GraphedSteps | None:
        """What takes the steps on CUDA, if it can: several at once."""
        if self.device.type != "cuda":
            return None
        assert isinstance(self.engine, Autograd | DeviceBackpropagation)
        reason = why_no_graphs(self.config, self.ranks.size)
        if reason is None:
            try:
                graphs = GraphedSteps(self.engine, self.optimizer, self.batch_size, self.rows)
                with step_arithmetic(tf32=self.tf32):
                    graphs.record()
            except RuntimeError as error:
                reason = f"recording failed: {str(error).splitlines()[0]}"
            else:
                event("graphs", f"steps are replayed as CUDA graphs, up to {STEPS} in one")
                return graphs
        event("graphs", f"CUDA's kernels are launched one by one, since {reason}", reason=reason)
        return None

    @property
    def done(self) -> bool:
        epochs, stopping = len(self.training.epochs), self.config.train.early_stopping
        stopped = stopping is not None and epochs - self.training.best >= stopping.patience
        return stopped or epochs == self.config.train.epochs

    def train_epoch(
        self, advance: Callable[..., object], on_step: Callable[[], None]
    ) -> EpochRecord:
        """The steps of the epoch that are not done yet, and its record; `advance` moves a bar,
        which shows the losses of the epoch before."""
        training, epochs = self.training, self.config.train.epochs
        epoch = len(training.epochs) + 1
        shown = {"epoch": f"{epoch}/{epochs}"}
        for last in training.epochs[-1:]:
            shown["loss"] = f"{last.training_loss:.4g}"
            shown["validation"] = f"{last.validation_loss:.4g}"
        advance(0, **shown)
        with step_arithmetic(tf32=self.tf32), self.engine.mode():
            self._rest_of_epoch(epoch, advance, on_step)
        metrics = self.ranks.from_first(
            lambda: evaluate(self.model, self.validation, self.config.train, self.device)
        )
        loss = self.objective.unit * training.loss_sum / self.rows
        lr = float(self.optimizer.param_groups[0]["lr"])
        record = EpochRecord(epoch, training.steps, lr, loss, metrics)
        self.contention.look()
        self._note_if_best(record)
        training.epochs.append(record)
        training.loss_sum = 0.0
        event(
            "epoch",
            f"epoch {epoch}/{epochs}  loss {loss:.5g}  validation {metrics['loss']:.5g}  "
            f"{training.samples_per_second:,.0f} rows/s",
            epoch=epoch,
            training_loss=loss,
            validation=metrics,
            samples_per_second=training.samples_per_second,
        )
        return record

    def _note_if_best(self, record: EpochRecord) -> None:
        stopping, training = self.config.train.early_stopping, self.training
        if stopping is None:
            training.best = record.epoch
        elif (
            training.best == 0
            or record.validation_loss < training.result.validation_loss - stopping.min_delta
        ):
            training.best = record.epoch
            self.saver.note_best()

    def take_best(self) -> None:
        """Gives the model the best epoch's weights, and says so where it was not the last."""
        self.model.eval()
        self.engine.release()
        epochs, best = len(self.training.epochs), self.training.best
        if best < epochs:
            self.model.network.load_state_dict(self.saver.best)
            event(
                "early_stopping",
                f"of {epochs} epochs the validation loss was lowest after epoch {best}: its "
                f"weights are taken",
                epochs=epochs,
                best=best,
            )

    def _rest_of_epoch(
        self, epoch: int, advance: Callable[..., object], on_step: Callable[[], None]
    ) -> None:
        training, size = self.training, self.batch_size
        stopwatch = time.perf_counter()
        order = self.shuffle.order(epoch)
        done = training.steps - (epoch - 1) * self.steps_per_epoch
        while done < self.steps_per_epoch:
            on_step()
            several = self.graphs.at_once if self.graphs else 1
            rows = order[done * size : (done + several) * size]
            try:
                losses = self._steps(rows)
            except Diverged as reason:
                raise Diverged(
                    f"training diverged at step {training.steps + 1} in epoch {epoch}: {reason}; "
                    f"lower train.optimizer.lr"
                ) from None
            done += len(losses)
            training.steps += len(losses)
            trained = min(len(rows), len(losses) * size)
            for i, loss in enumerate(losses):
                training.loss_sum += loss * min(size, trained - i * size)
            training.rows += trained
            advance(trained)
            if self.saver.due:
                training.seconds += time.perf_counter() - stopwatch
                self.saver.save()
                stopwatch = time.perf_counter()
        training.seconds += time.perf_counter() - stopwatch

    def _steps(self, rows: NDArray[np.int64]) -> list[float]:
        """Steps on batches of these rows, or on the first of them; the losses of those taken."""
        first, size = self.training.steps, self.batch_size
        if self.graphs is not None:
            rates = [self._rate(first + i) for i in range(-(-len(rows) // size))]
            losses = self.graphs.steps(rows, rates)
            if losses:
                self._set_rate(rates[len(losses) - 1])
                return losses
        # Where a recorded step was not finite this says what was not.
        if not self.steady:
            self._set_rate(self._rate(first))
        if self.dropout:  # torch.nn.Dropout draws from torch's own generator
            mask = first * self.ranks.size + self.ranks.rank
            torch.manual_seed(seed_of(self.config.seed_number, Purpose.DROPOUT, mask))
        return [self.engine.step(rows[:size], self.update)]

    def _rate(self, step: int) -> float:
        """The learning rate of a step: as its number says, or the optimizer's own."""
        if self.steady:
            return float(self.optimizer.param_groups[0]["lr"])
        config = self.config.train
        factor = learning_rate_factor(config.schedule, step, config.epochs * self.steps_per_epoch)
        return config.optimizer.lr * factor

    def _set_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate


class Saver:
    """The state of a training: restores it, decides when a checkpoint is due, and writes it."""

    def __init__(
        self,
        folder: Path,
        config: Checkpoint,
        model: MLP,
        optimizer: torch.optim.Optimizer,
        ranks: Ranks,
    ) -> None:
        self.folder, self.config, self.model, self.optimizer = folder, config, model, optimizer
        self.ranks = ranks
        self.training = Training()
        self.best: dict[str, Tensor] = {}  # the network's weights after the best epoch
        self.last = time.monotonic()
        self._restore()

    @property
    def due(self) -> bool:
        """Is a checkpoint wanted now, in the middle of an epoch?"""
        seconds = self.config.every_seconds
        late = seconds is not None and time.monotonic() - self.last >= seconds
        return late or self.ranks.stopping

    def note_best(self) -> None:
        """Keeps a copy of the network's weights."""
        self.best = {name: w.clone() for name, w in self.model.network.state_dict().items()}

    def after_epoch(self, *, last: bool) -> None:
        """Saves where the epoch's number or the time says so, and after the last.

        Raises:
            Interrupted: a signal has come; all is saved.
        """
        every = self.config.every
        if last or self.due or (every is not None and len(self.training.epochs) % every == 0):
            self.save()

    def save(self) -> None:
        """Leaves a checkpoint; nowhere else does the training stop.

        Raises:
            Interrupted: a signal has come; all is saved.
        """
        if self.ranks.first:
            state = {
                "network": self.model.network.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "training": asdict(self.training),
                "best": self.best,
            }
            save_checkpoint(self.folder, self.training.steps, state)
        self.last = time.monotonic()
        if self.ranks.stopping:  # of several processes none may stop alone
            interrupt.check()

    def _restore(self) -> None:
        """Puts all where the newest checkpoint left it, if there is one."""
        state = self.ranks.from_first(lambda: load_checkpoint(self.folder))
        if state is None:
            return
        self.model.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.training, self.best = Training.from_state(state["training"]), state["best"]
        steps, epochs = self.training.steps, len(self.training.epochs)
        event(
            "resumed",
            f"going on after step {steps}, {epochs} epochs are done",
            steps=steps,
            epochs=epochs,
        )
