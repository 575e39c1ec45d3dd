"""Training: the step, the loop over epochs, the schedule and the metrics."""

from job.train.evaluate import Metrics, evaluate, predict
from job.train.loop import EpochRecord, Training, train

__all__ = ["EpochRecord", "Metrics", "Training", "evaluate", "predict", "train"]
