"""Exported files: what is in them, and what is not. That they agree is job/verify's business."""

import errno
import io
import os
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import safetensors.numpy
import torch

from job.config import Config, load_config
from job.durable import write_npy
from job.export import Exporter, write_goldens
from job.model import MLP, build_model
from job.verify import Reference, verify_files

from .conftest import ROOT

ROWS = np.random.default_rng(0).normal(2, 3, (300, 5)).astype(np.float32)


def model_for(activation: str, *overrides: str) -> MLP:
    config = load_config(
        None, [f"model.activation={activation}", "model.hidden=[8, 4]", *overrides]
    )
    return build_model(config, ROWS, ROWS[:, :1]).eval()


def export(model: MLP, folder: Path, config: Config) -> None:
    Exporter(model, config).write(model.weights(), folder, "f" * 64)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    export(model_for("relu"), folder, load_config(None))
    return folder


def test_all_four_formats_are_written(exported: Path) -> None:
    names = {"model.onnx", "model.torchscript.pt", "model.pt2", "model.safetensors"}
    assert {path.name for path in exported.iterdir()} == names


def test_a_disk_that_is_full_is_what_the_operating_system_says(tmp_path: Path) -> None:
    """And no defect, nor a file without its end that nobody was told of."""
    model = model_for("relu")
    exporter = Exporter(model, load_config(None))
    for name in ("model.onnx", "model.torchscript.pt", "model.pt2", "model.safetensors"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).symlink_to("/dev/full")
        with pytest.raises(OSError, match="No space left") as caught:
            exporter.write(model.weights(), folder, "f" * 64)
        assert caught.value.errno == errno.ENOSPC, name
    with pytest.raises(OSError, match="No space left") as caught:
        write_npy(Path("/dev/full"), ROWS)
    assert caught.value.errno == errno.ENOSPC


def test_only_the_formats_asked_for_are_written(tmp_path: Path) -> None:
    config = load_config(None, ["export.formats=[onnx, torchscript]"])
    export(model_for("relu"), tmp_path, config)
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", "model.torchscript.pt"}


@pytest.mark.parametrize(
    ("activation", "opset", "ir"),
    [
        ("relu", 18, 8),
        ("leaky_relu", 18, 8),
        ("silu", 18, 8),
        ("tanh", 18, 8),
        ("gelu", 20, 9),
    ],
)
def test_onnx_has_the_lowest_opset_and_ir_that_serve(
    activation: str, opset: int, ir: int, tmp_path: Path
) -> None:
    config = load_config(None, [f"model.activation={activation}"])
    export(model_for(activation), tmp_path, config)
    proto = onnx.load(tmp_path / "model.onnx")
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", opset)]
    assert proto.ir_version == ir
    assert not proto.functions


def test_an_opset_that_is_asked_for_is_written(tmp_path: Path) -> None:
    config = load_config(None, ["export.opset=21"])
    export(model_for("relu"), tmp_path, config)
    assert onnx.load(tmp_path / "model.onnx").opset_import[0].version == 21


def test_onnx_is_one_file_with_named_axes_and_the_fingerprint(exported: Path) -> None:
    proto = onnx.load_model_from_string((exported / "model.onnx").read_bytes())
    (value,), (answer,) = proto.graph.input, proto.graph.output
    assert (value.name, answer.name) == ("input", "output")
    assert [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim] == ["batch", 5]
    assert [d.dim_param or d.dim_value for d in answer.type.tensor_type.shape.dim] == ["batch", 1]
    assert not any(i.external_data for i in proto.graph.initializer)
    assert not any(node.metadata_props or node.doc_string for node in proto.graph.node)
    assert {p.key: p.value for p in proto.metadata_props} == {"fingerprint": "f" * 64}


def test_no_file_holds_a_path_or_a_name_of_this_machine(exported: Path) -> None:
    here = str(Path(__file__).resolve().parent.parent).encode()
    torchs = os.path.dirname(torch.__file__).encode()
    for path in exported.iterdir():
        content = path.read_bytes()
        parts = [content]
        if zipfile.is_zipfile(io.BytesIO(content)):
            archive = zipfile.ZipFile(io.BytesIO(content))
            parts += [archive.read(name) for name in archive.namelist()]
        for part in parts:
            for secret in (here, torchs, str(exported).encode(), socket.gethostname().encode()):
                assert secret not in part, path.name


def test_torchscript_holds_no_debug_records(exported: Path) -> None:
    with zipfile.ZipFile(exported / "model.torchscript.pt") as archive:
        names = archive.namelist()
    assert names == sorted(names)
    assert not [name for name in names if name.endswith((".debug_pkl", "serialization_id"))]


def test_safetensors_holds_every_weight_and_buffer(exported: Path) -> None:
    held = safetensors.numpy.load_file(exported / "model.safetensors")
    wanted = model_for("relu").weights()
    assert held.keys() == wanted.keys()
    assert all(held[name].tobytes() == wanted[name].tobytes() for name in wanted)


def test_other_weights_give_the_files_of_a_model_traced_with_them(tmp_path: Path) -> None:
    """In a process of its own each, as a second trace names things differently."""
    code = """if True:
        import sys, pathlib
        from tests.test_export import Exporter, load_config, model_for
        first, folder = sys.argv[1:]
        exporter = Exporter(model_for("relu", f"seed={first}"), load_config(None))
        exporter.write(model_for("relu", "seed=1").weights(), pathlib.Path(folder), "f" * 64)
    """
    for seed in ("1", "2"):
        (tmp_path / seed).mkdir()
        command = [sys.executable, "-c", code, seed, str(tmp_path / seed)]
        subprocess.run(command, cwd=ROOT, check=True)
    for path in (tmp_path / "1").iterdir():
        assert path.read_bytes() == (tmp_path / "2" / path.name).read_bytes(), path.name


def test_exporting_leaves_the_trained_model_as_it_is(tmp_path: Path) -> None:
    model = model_for("relu").train()
    before = model.weights()
    export(model, tmp_path, load_config(None))
    assert model.training
    assert all(before[name].tobytes() == value.tobytes() for name, value in model.weights().items())


def test_goldens_are_the_same_numbers_in_both_layouts(tmp_path: Path) -> None:
    x, y = ROWS[:40], ROWS[:40, :1].copy()
    write_goldens(tmp_path, x, y)
    assert np.array_equal(np.load(tmp_path / "golden" / "input.npy"), x)
    for name, values in (("input", x), ("output", y)):
        tensor = onnx.load_tensor(tmp_path / "test_data_set_0" / f"{name}_0.pb")
        assert tensor.name == name
        assert np.array_equal(onnx.numpy_helper.to_array(tensor), values)


@pytest.mark.parametrize("hidden", ["[]", "[1]", "[64, 64, 64]"])
def test_what_is_exported_agrees(hidden: str, tmp_path: Path) -> None:
    config = load_config(None, [f"model.hidden={hidden}"])
    model = build_model(config, ROWS, ROWS[:, :1]).eval()

    def answer(x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return np.asarray(model(torch.from_numpy(x)).numpy())

    reference = Reference.of_model(model.weights(), "relu", (1, 3), ROWS[:40], answer)
    write_goldens(tmp_path, reference.golden_input, reference.golden_output)
    export(model, tmp_path, config)
    verify_files(tmp_path, reference).require_agreement()
