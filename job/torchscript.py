"""TorchScript, which torch has deprecated: here it is asked for, and not warned of."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@contextmanager
def asked_for() -> Iterator[None]:
    """Where torch does not warn that it is deprecated."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit", category=DeprecationWarning)
        yield


def trace(module: "torch.nn.Module", *example: "torch.Tensor") -> Any:
    """What `module` does with such an example, as a torch.jit.ScriptModule."""
    import torch

    with asked_for():
        return torch.jit.trace(module, example, check_trace=False)  # type: ignore[no-untyped-call]


def save(module: Any) -> bytes:
    """The archive of a ScriptModule."""
    import torch

    content = io.BytesIO()
    with asked_for():
        torch.jit.save(module, content)
    return content.getvalue()


def load(content: bytes) -> Any:
    """The ScriptModule of an archive. It is code: load only what is known to be ours."""
    import torch

    with asked_for():
        return torch.jit.load(io.BytesIO(content), map_location="cpu")  # type: ignore[no-untyped-call]
