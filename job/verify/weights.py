"""The weights that a published file holds, and whether they are the trained ones, bit for bit."""

import importlib.util
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from job import torchscript
from job.errors import DataError, ExportMismatch
from job.verify.engines import load_program

Float32 = NDArray[np.float32]


def weights_of(artifact: str, content: bytes) -> Mapping[str, NDArray[Any]] | None:
    """The named weights that a file holds, or None if what reads it is not installed.

    Raises:
        ExportMismatch: an ONNX file keeps weights outside itself.
    """
    if artifact == "model.safetensors":
        return read_safetensors(content)
    reader = {"model.onnx": "onnx", "model.torchscript.pt": "torch", "model.pt2": "torch"}[artifact]
    if importlib.util.find_spec(reader) is None:
        return None
    if artifact == "model.onnx":
        return _onnx_weights(content)
    state = (
        load_program(content).state_dict
        if artifact == "model.pt2"
        else torchscript.load(content).state_dict()
    )
    return {name: tensor.detach().numpy() for name, tensor in state.items()}


def _onnx_weights(content: bytes) -> Mapping[str, NDArray[Any]]:
    import onnx

    model = onnx.load_model_from_string(content)
    onnx.checker.check_model(model)
    for initializer in model.graph.initializer:
        if initializer.data_location == onnx.TensorProto.EXTERNAL or initializer.external_data:
            raise ExportMismatch(f"the weight {initializer.name} lies outside model.onnx")
    return {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}


def read_safetensors(content: bytes) -> dict[str, NDArray[Any]]:
    """The float32 tensors of a safetensors file, read without its library.

    The format: 8 bytes little-endian length, a JSON header, the tensors' bytes without gaps.

    Raises:
        DataError: the file is malformed, or holds another type.
    """
    tensors: dict[str, NDArray[Any]] = {}
    try:
        start = 8 + int.from_bytes(content[:8], "little")
        if start > len(content):
            raise ValueError(f"its header would end at byte {start} of {len(content)}")
        header, data = json.loads(content[8:start]), content[start:]
        header.pop("__metadata__", None)
        read = 0
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            if entry["dtype"] != "F32":
                raise ValueError(f"{name} has type {entry['dtype']}, not F32")
            begin, end = entry["data_offsets"]
            size = 4 * math.prod(entry["shape"])
            if begin != read or end != begin + size or min(entry["shape"], default=0) < 0:
                raise ValueError(f"{name} is not {entry['shape']} after byte {read}")
            tensors[name] = np.frombuffer(data[begin:end], dtype="<f4").reshape(entry["shape"])
            read = end
        if read != len(data):
            raise ValueError(f"{len(data) - read} bytes belong to no tensor")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"not a safetensors file of float32 weights: {error}") from None
    return tensors


def disagreements(
    artifact: str, found: Mapping[str, NDArray[Any]], wanted: Mapping[str, Float32]
) -> Iterator[str]:
    """One line, in the order of the names, for each weight that `found` holds not bit for bit."""
    for name, weight in sorted(wanted.items()):
        there = found.get(name)
        if there is None:
            yield f"{artifact} does not hold the weight {name}"
        elif there.dtype != weight.dtype or there.shape != weight.shape:
            yield f"{artifact} holds {name} as {there.dtype}{there.shape}"
        elif there.tobytes() != weight.tobytes():
            count = int((there.view(np.uint32) != weight.view(np.uint32)).sum())
            yield f"{artifact} holds other values in {count} of {weight.size} elements of {name}"
    for name in sorted(found.keys() - wanted.keys()):
        yield f"{artifact} holds {name}, which the trained model has not"
