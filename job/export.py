"""The trained model -> one file per format.

What the exporters add and nobody needs is taken out: host paths in stack traces and debug records,
dates, random ids. What remains depends on the model alone.
"""

import copy
import io
import logging
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor

import job
from job import torchscript
from job.config import Config
from job.durable import write_npy
from job.errors import JobError
from job.model import MLP

Float32 = NDArray[np.float32]


class Exporter:
    """A model, traced once for every format; files written later differ in their weights alone."""

    def __init__(self, model: MLP, config: Config) -> None:
        """Traces a copy of `model` on the CPU in eval mode, wherever it was trained."""
        self.config = config
        self.model = copy.deepcopy(model).cpu().eval()
        # The ONNX optimiser keeps one of two equal tensors; these are all different.
        for number, tensor in enumerate(self.model.state_dict().values(), start=1):
            tensor.fill_(number)
        # Two rows: with one, an exporter may take the batch for a constant.
        example = torch.zeros(2, len(model.input.mean))
        # TorchScript first: a second trace in one process names things differently.
        self.traced = torchscript.trace(self.model, example)
        self.program = export_program(self.model, example)
        self.onnx = export_onnx(self.program, config.opset)

    def write(self, weights: Mapping[str, Float32], folder: Path, fingerprint: str) -> None:
        """Writes the model files that `config.export.formats` names into `folder`, with these
        weights, named as `MLP.weights` names them."""
        self._take(weights)
        formats = self.config.export.formats
        write_torchscript(self.traced, folder / "model.torchscript.pt")
        if "pt2" in formats:
            # Into memory first: where the disk is full torch's error would be no OSError.
            content = io.BytesIO()
            torch.export.save(self.program, content)
            (folder / "model.pt2").write_bytes(content.getvalue())
        write_onnx(self.onnx, folder / "model.onnx", self.config.opset, fingerprint)
        if "safetensors" in formats:
            # The library's own save_file makes a file that nobody else may read.
            (folder / "model.safetensors").write_bytes(save(self.model.state_dict()))

    @torch.no_grad()
    def _take(self, weights: Mapping[str, Float32]) -> None:
        """Each format by its own means: nothing says that they share the model's tensors."""
        self.model.take(weights)
        state = self.model.state_dict()
        self.traced.load_state_dict(state)
        for name, tensor in self.program.state_dict.items():
            tensor.copy_(state[name])
        self.onnx.apply_weights(state)


def write_torchscript(traced: torch.jit.ScriptModule, path: Path) -> None:
    """A TorchScript archive, without debug records, dates and ids."""
    content = io.BytesIO(torchscript.save(traced))
    with zipfile.ZipFile(content) as archive, zipfile.ZipFile(path, "w") as plain:
        for name in sorted(archive.namelist()):
            if not name.endswith((".debug_pkl", ".data/serialization_id")):
                # A ZipInfo is of 1980 unless told.
                plain.writestr(zipfile.ZipInfo(name), archive.read(name))


def export_program(model: MLP, example: Tensor) -> torch.export.ExportedProgram:
    """The torch.export program with a free batch axis, without stack traces."""
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (example,), dynamic_shapes=({0: batch},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def export_onnx(program: torch.export.ExportedProgram, opset: int) -> torch.onnx.ONNXProgram:
    """The ONNX graph: batch axis "batch", input "input", output "output"."""
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
    return exported


def write_onnx(exported: torch.onnx.ONNXProgram, path: Path, opset: int, fingerprint: str) -> None:
    """One self-contained ONNX file."""
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
        write_npy(folder / "golden" / f"{name}.npy", values)
        tensor = onnx.numpy_helper.from_array(values, name)
        onnx.save_tensor(tensor, folder / "test_data_set_0" / f"{name}_0.pb")
