"""The training: epochs of shuffled batches on rows that lie on the device.

Shapes: N training rows, B rows of a batch, F features, O outputs.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from job.config import Config
from job.data import Dataset, Split
from job.errors import Diverged
from job.log import event
from job.model import MLP
from job.optim import make_optimizer
from job.streams import Purpose, generator
from job.train.evaluate import Metrics, evaluate
from job.train.schedule import learning_rate_factor
from job.train.step import training_step


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
    """What the training did."""

    epochs: list[EpochRecord] = field(default_factory=list)
    steps: int = 0
    rows: int = 0
    seconds: float = 0.0  # shuffling, gathering and steps; evaluation is not counted

    @property
    def samples_per_second(self) -> float:
        return self.rows / self.seconds


def train(
    model: MLP,
    data: Dataset,
    config: Config,
    device: torch.device,
    on_epoch: Callable[[EpochRecord], None],
) -> Training:
    """Trains `model` in place on the training rows; it ends on `device`, in eval mode.

    `on_epoch` is called with the record of each epoch as it ends.

    Raises:
        Diverged: a loss or a gradient was not finite; names epoch and step.
    """
    model.to(device)
    x, y = _standardised(model, data.training, device)
    # Errors are standardised; this makes them the target's own, squared.
    unit = float(model.output.std.square().mean())
    loss_function = nn.MSELoss()
    optimizer = make_optimizer(model.network.parameters(), config.train.optimizer)
    peak = config.train.optimizer.lr
    steps_per_epoch = -(-len(x) // config.train.batch_size)
    total = config.train.epochs * steps_per_epoch

    training = Training()
    for epoch in range(1, config.train.epochs + 1):
        started = time.perf_counter()
        model.train()
        loss_sum = 0.0
        for rows in _shuffled(len(x), config.train.batch_size, config.seed, epoch, device):
            if config.train.schedule.name != "constant":  # which leaves lr to the optimizer
                lr = peak * learning_rate_factor(config.train.schedule.name, training.steps, total)
                for group in optimizer.param_groups:
                    group["lr"] = lr
            training.steps += 1
            try:
                loss = training_step(model.network, loss_function, optimizer, x[rows], y[rows])
            except Diverged as reason:
                raise Diverged(
                    f"training diverged at step {training.steps} in epoch {epoch}: {reason}; "
                    f"lower train.optimizer.lr"
                ) from None
            loss_sum += loss * len(rows)
        training.seconds += time.perf_counter() - started
        training.rows += len(x)

        model.eval()
        metrics = evaluate(model, data.validation, device)
        lr = optimizer.param_groups[0]["lr"]
        record = EpochRecord(epoch, training.steps, lr, unit * loss_sum / len(x), metrics)
        training.epochs.append(record)
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
    return training


@torch.no_grad()
def _standardised(model: MLP, rows: Split, device: torch.device) -> tuple[Tensor, Tensor]:
    """The training rows as the network sees them: x (N, F), y (N, O) on the device."""
    x: Tensor = model.input(torch.from_numpy(rows.x).to(device))
    y = (torch.from_numpy(rows.y).to(device) - model.output.mean) / model.output.std
    return x, y


def _shuffled(n: int, size: int, seed: int, epoch: int, device: torch.device) -> Iterator[Tensor]:
    """Batches of row numbers, every row once, in an order that (seed, epoch) gives."""
    order = generator(seed, Purpose.SHUFFLE, epoch).permutation(n)
    yield from torch.split(torch.from_numpy(order).to(device), size)
