"""What `train.loss` asks to be minimised, and the same in the target's own units.

Shapes: N rows, O outputs or K classes.
"""

import copy

import torch
from torch import Tensor, nn

from job.config import Train
from job.model import MLP, Unstandardise

# The power of the target's unit that a loss is measured in.
_POWER = {"mse": 2, "mae": 1, "huber": 2, "cross_entropy": 0}


class Objective:
    """The loss of a model with its scaling: on standardised numbers, or on the logits of classes.

    `function` takes what the network answers and `targets(y)`. Its value times `unit` is in the
    target's own units (with several outputs, in the mean of theirs).
    """

    def __init__(self, config: Train, model: MLP) -> None:
        self.function = _function(config)
        self.scaling = model.output if isinstance(model.output, Unstandardise) else None
        std = torch.ones(1) if self.scaling is None else self.scaling.std
        self.unit = float(std.double().pow(_POWER[config.loss]).mean())

    def targets(self, y: Tensor) -> Tensor:
        """y as the loss takes it: standardised (N, O), or the classes' numbers (N,)."""
        if self.scaling is None:
            return y[:, 0].long()
        return (y - self.scaling.mean) / self.scaling.std

    def of_answers(self, answers: Tensor, y: Tensor) -> float:
        """The loss in the target's units of the model's answers (N, O) or (N, K), in float64."""
        function = copy.deepcopy(self.function).to(answers.device, torch.float64)
        # For classes the logarithms: their softmax is the answers again.
        network = answers.log() if self.scaling is None else self.targets(answers)
        return self.unit * float(function(network, self.targets(y.double())))


def _function(config: Train) -> nn.Module:
    if config.loss == "mae":
        return nn.L1Loss()
    if config.loss == "huber":
        return nn.HuberLoss(delta=config.huber_delta)
    if config.loss == "cross_entropy":
        weights = None if config.class_weights is None else torch.tensor(config.class_weights)
        return nn.CrossEntropyLoss(weights, label_smoothing=config.label_smoothing)
    return nn.MSELoss()
