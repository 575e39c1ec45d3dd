"""The arithmetic of training steps; all else is float32 by IEEE 754."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from job.log import WARNING, event


@contextmanager
def step_arithmetic(*, tf32: bool) -> Iterator[None]:
    """Within, numbers below 1.2e-38 count as 0, and with `tf32` CUDA may round the factors of
    matrix products to it.

    The moments of a unit that no row reaches any more decay to such numbers, and a CPU takes some
    hundred times as long for each: a fifth of a step on 256 rows (docs/performance.md).
    """
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
        torch.set_float32_matmul_precision("highest")


def say_if_tf32_is_float32(device: torch.device) -> None:
    """Not refused: a job that takes CUDA where it works should run elsewhere too."""
    if device.type == "cpu":
        reason = "the CPU has no TF32"
    elif torch.cuda.get_device_capability(device) < (8, 0):
        reason = "this GPU is older than TF32 (compute capability 8.0)"
    else:
        return
    event(
        "precision",
        f"train.precision tf32 has no effect, {reason}: the training is in float32",
        level=WARNING,
        precision="float32",
    )
