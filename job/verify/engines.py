"""Published model files, each loaded from bytes into each engine that is installed.

An engine is a function: x (N, F) float32 -> the answer (N, O). Every one runs on the CPU. torch,
onnx and onnxruntime are imported here only when a file needs them.
"""

import importlib.util
import io
import os
import re
import warnings
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from job import torchscript
from job.errors import ExportMismatch

if TYPE_CHECKING:
    import torch

# On by default on Linux since onnxruntime 1.29: it would write a device id under the home folder.
# Read when onnxruntime is imported, so it is said before that can happen.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

# How a tensor in an ONNX file says that its bytes lie in another: an entry with the key "location"
# (field 1, 8 bytes). onnxruntime would take that file from the working directory. Either number may
# be written longer than it needs to be: protobuf reads 0x88 0x00 as 8 too.
_EXTERNAL = re.compile(rb"(?:\x0a|\x8a\x80*\x00)(?:\x08|\x88\x80*\x00)location")

Float32 = NDArray[np.float32]
Run = Callable[[Float32], object]


class Engine(NamedTuple):
    """One file in one runtime."""

    artifact: str
    name: str
    load: Callable[[bytes], Run]


def engines(files: Mapping[str, bytes]) -> tuple[list[Engine], list[str]]:
    """The engines for the files that are there, and a line for each that cannot run here."""
    found: list[Engine] = []
    skipped: list[str] = []
    plain = partial(load_onnx, optimise=False)
    for artifact, name, needs, load in (
        ("model.onnx", "onnxruntime, not optimised", "onnxruntime", plain),
        ("model.onnx", "onnxruntime, optimised", "onnxruntime", load_onnx),
        ("model.torchscript.pt", "torch.jit", "torch", lambda c: _torch_run(torchscript.load(c))),
        ("model.pt2", "torch.export", "torch", lambda c: _torch_run(load_program(c).module())),
    ):
        if artifact not in files:
            continue
        if importlib.util.find_spec(needs) is None:
            skipped.append(f"{artifact} in {name}: {needs} is not installed")
        else:
            found.append(Engine(artifact, name, load))
    return found, skipped


def load_onnx(content: bytes, *, optimise: bool = True) -> Run:
    """An ONNX model in onnxruntime's CPU provider, which is seen to be the one that runs."""
    session = onnx_session(content, optimise=optimise)

    def run(x: Float32) -> object:
        outputs: list[object] = session.run(None, {"input": x})
        # Several, or none, are not one tensor, and fail as not being that.
        return outputs[0] if len(outputs) == 1 else outputs

    return run


def onnx_session(content: bytes, *, optimise: bool = True) -> Any:
    import onnxruntime as ort

    if _EXTERNAL.search(content):
        raise ExportMismatch("weights lie outside model.onnx")
    ort.set_default_logger_severity(4)  # its errors are raised too
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = (
        ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        if optimise
        else ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    )
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    if session.get_providers() != ["CPUExecutionProvider"]:
        raise ExportMismatch(f"onnxruntime ran {session.get_providers()}, not its CPU provider")
    return session


@lru_cache(maxsize=1)  # its weights and its answers are looked at one after the other
def load_program(content: bytes) -> "torch.export.ExportedProgram":
    """The torch.export program in a .pt2 file."""
    import torch

    with warnings.catch_warnings():
        # Before 2.12 torch warns of the bytes that it reads itself.
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return torch.export.load(io.BytesIO(content))


def _torch_run(module: Any) -> Run:
    import torch

    def run(x: Float32) -> object:
        with torch.no_grad():
            answer = module(torch.from_numpy(x))
        return answer.numpy() if isinstance(answer, torch.Tensor) else answer

    return run


def onnx_signature(content: bytes) -> tuple[list[Any], list[Any]]:
    """(name, type, shape) of each input and of each output, as onnxruntime reads them."""
    session = onnx_session(content)
    inputs, outputs = (
        [(v.name, v.type, list(v.shape)) for v in values]
        for values in (session.get_inputs(), session.get_outputs())
    )
    return inputs, outputs
