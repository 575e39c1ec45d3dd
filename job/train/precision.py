"""What the matrix products of a training step are computed in; all else is float32."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from job.log import WARNING, event


@contextmanager
def tf32(wanted: bool) -> Iterator[None]:
    """CUDA may round the factors of matrix products to TF32 within; never outside."""
    torch.set_float32_matmul_precision("high" if wanted else "highest")
    try:
        yield
    finally:
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
