"""The trained model -> one file per format.

What the exporters add and nobody needs is taken out: host paths in stack traces and debug records,
dates, random ids. What remains depends on the model alone.
"""

import copy
import io
import logging
import warnings
import zipfile
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor

import job
from job import interrupt
from job.config import Config
from job.errors import JobError
from job.model import MLP

Float32 = NDArray[np.float32]

# Earliest date that a zip archive can hold.
_NO_DATE = (1980, 1, 1, 0, 0, 0)


def export_model(model: MLP, folder: Path, config: Config, fingerprint: str) -> None:
    """Writes the model files that `config.export.formats` names into `folder`.

    They are made from a copy of `model` on the CPU in eval mode, wherever it was trained.

    Raises:
        Interrupted: a signal has come.
    """
    model = copy.deepcopy(model).cpu().eval()
    # Two rows: with one, an exporter may take the batch for a constant.
    example = torch.zeros(2, len(model.input.mean))
    formats = config.export.formats
    # TorchScript first: a second trace in one process names things differently.
    write_torchscript(model, example, folder / "model.torchscript.pt")
    interrupt.check()
    program = export_program(model, example)
    if "pt2" in formats:
        torch.export.save(program, folder / "model.pt2")
    interrupt.check()
    write_onnx(program, folder / "model.onnx", config.opset, fingerprint)
    interrupt.check()
    if "safetensors" in formats:
        # The library's own save_file makes a file that nobody else may read.
        (folder / "model.safetensors").write_bytes(save(model.state_dict()))


def write_torchscript(model: MLP, example: Tensor, path: Path) -> None:
    """A traced TorchScript archive, without debug records, dates and ids."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # Deprecated upstream but asked for.
        warnings.filterwarnings("ignore", message=r".*torch\.jit", category=DeprecationWarning)
        traced = torch.jit.trace(model, example, check_trace=False)  # type: ignore[no-untyped-call]
        torch.jit.save(traced, buffer)
    with zipfile.ZipFile(buffer) as archive, zipfile.ZipFile(path, "w") as plain:
        for name in sorted(archive.namelist()):
            if not name.endswith((".debug_pkl", ".data/serialization_id")):
                plain.writestr(zipfile.ZipInfo(name, _NO_DATE), archive.read(name))


def export_program(model: MLP, example: Tensor) -> torch.export.ExportedProgram:
    """The torch.export program with a free batch axis, without stack traces."""
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (example,), dynamic_shapes=({0: batch},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def write_onnx(
    program: torch.export.ExportedProgram, path: Path, opset: int, fingerprint: str
) -> None:
    """One self-contained ONNX file: batch axis "batch", input "input", output "output"."""
    # Says on every export that torchvision, which nothing here uses, is not installed.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # torch's own use of a name that torch has deprecated.
        warnings.filterwarnings("ignore", message=r".*LeafSpec", category=FutureWarning)
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=opset,
            input_names=["input"],
            output_names=["output"],
            dynamic_shapes=({0: "batch"},),  # else the axis is named s77 or the like
            external_data=False,
            verbose=False,
        )
    if exported is None:
        raise JobError("torch.onnx.export returned nothing")
    proto = exported.model_proto
    written = {entry.domain: entry.version for entry in proto.opset_import}
    if written != {"": opset}:
        raise JobError(f"torch.onnx.export wrote the operator sets {written}, not {opset}")
    # The exporter always writes IR 10, which older runtimes refuse without need.
    proto.ir_version = onnx.helper.find_min_ir_version_for(proto.opset_import)
    proto.producer_name, proto.producer_version = "job", job.__version__
    for node in proto.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        del value.metadata_props[:]
    del proto.graph.metadata_props[:]
    onnx.helper.set_model_props(proto, {"fingerprint": fingerprint})
    onnx.checker.check_model(proto, full_check=True)
    path.write_bytes(proto.SerializeToString(deterministic=True))


def write_goldens(folder: Path, golden_input: Float32, golden_output: Float32) -> None:
    """The golden vectors (G, F) and (G, O), as .npy and in ONNX's own test layout."""
    (folder / "golden").mkdir()
    (folder / "test_data_set_0").mkdir()
    for name, values in (("input", golden_input), ("output", golden_output)):
        np.save(folder / "golden" / f"{name}.npy", values, allow_pickle=False)
        tensor = onnx.numpy_helper.from_array(values, name)
        onnx.save_tensor(tensor, folder / "test_data_set_0" / f"{name}_0.pb")
