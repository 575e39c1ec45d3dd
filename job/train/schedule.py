"""The learning rate as a function of the step, so that resuming needs no stored state."""

import math


def learning_rate_factor(name: str, step: int, steps: int) -> float:
    """What the peak learning rate is multiplied by at `step` (from 0) of `steps`.

    `cosine`: (1 + cos(pi step / steps)) / 2, from I. Loshchilov and F. Hutter, SGDR (2017),
    equation 5 without restarts. `linear`: 1 - step / steps. `constant`: 1.
    """
    progress = step / steps
    if name == "cosine":
        return (1 + math.cos(math.pi * progress)) / 2
    if name == "linear":
        return 1 - progress
    return 1.0
