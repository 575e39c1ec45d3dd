"""The learning rate as a function of the step, so that resuming needs no stored state."""

import math

from job.config import Schedule


def learning_rate_factor(schedule: Schedule, step: int, steps: int) -> float:
    """What the peak learning rate is multiplied by at `step` (from 0) of `steps`.

    In w steps of warmup (step + 1) / (w + 1), so that step w is the first at the peak (P. Goyal et
    al., Accurate, Large Minibatch SGD, 2017, section 2.2). From there on, with p from 0 to 1 over
    the steps that remain, `cosine`: (1 + cos(pi p)) / 2, from I. Loshchilov and F. Hutter, SGDR
    (2017), equation 5 without restarts; `linear`: 1 - p; `constant`: 1.
    """
    warmup = schedule.warmup_steps(steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / (steps - warmup)
    if schedule.name == "cosine":
        return (1 + math.cos(math.pi * progress)) / 2
    if schedule.name == "linear":
        return 1 - progress
    return 1.0
