"""Files whose hashes fit and whose content does not: refused by name, before anything runs."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from job.errors import DataError
from job.manifest import file_entries, write_manifest
from job.verify import verify_published
from job.verify.weights import read_safetensors
from tests.conftest import ROOT


@pytest.fixture
def copy(published: Path, tmp_path: Path) -> Path:
    return shutil.copytree(published, tmp_path / "of another name")


def rehash(folder: Path, edit: Callable[[dict[str, Any]], object] = lambda manifest: None) -> None:
    """Makes the manifest fit what now lies in the folder, then changes it."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = file_entries(folder)
    edit(manifest)
    write_manifest(folder, manifest)


def test_a_copy_of_another_name_is_as_good(copy: Path) -> None:
    rehash(copy)
    verify_published(copy).require_agreement()


@pytest.mark.parametrize(
    "name",
    [
        "model.onnx",
        "model.torchscript.pt",
        "model.pt2",
        "model.safetensors",
        "golden/input.npy",
        "golden/output.npy",
        "test_data_set_0/input_0.pb",
        "test_data_set_0/output_0.pb",
    ],
)
def test_a_file_that_the_manifest_does_not_list_is_not_loaded(name: str, copy: Path) -> None:
    (copy / name).write_bytes(b"anything")
    rehash(copy, lambda manifest: manifest["files"].pop(name))
    with pytest.raises(DataError, match=f"does not list {name}"):
        verify_published(copy)


@pytest.mark.parametrize(
    "batches", [[], [0], [-1], [1.5], [True], ["7"], [10**12], None, "12", {"1": 2}, [[1]]]
)
def test_batches_that_are_none_are_refused(batches: object, copy: Path) -> None:
    rehash(copy, lambda manifest: manifest["verification"].update(batches=batches))
    with pytest.raises(DataError):
        verify_published(copy)


@pytest.mark.parametrize("model", [None, [], {}, {"activation": ["relu"]}, {"activation": None}])
def test_a_model_without_an_activation_is_refused(model: object, copy: Path) -> None:
    rehash(copy, lambda manifest: manifest.update(model=model))
    with pytest.raises(DataError):
        verify_published(copy)


def zipped(path: Path) -> None:
    with open(path, "wb") as file:
        np.savez(file, a=np.zeros(3))


def pickled(path: Path) -> None:
    np.save(path, np.array([{}], object), allow_pickle=True)


def enormous(path: Path) -> None:
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f4", "fortran_order": False, "shape": (10**15, 10)}
        )


@pytest.mark.parametrize(
    "write",
    [
        zipped,
        pickled,
        enormous,
        lambda path: path.write_bytes(b""),
        lambda path: np.save(path, np.zeros((40, 10))),
        lambda path: np.save(path, np.zeros((40, 10), ">f4")),
        lambda path: np.save(path, np.zeros((40, 9), np.float32)),
        lambda path: np.save(path, np.zeros((0, 10), np.float32)),
        lambda path: np.save(path, np.zeros(10, np.float32)),
        lambda path: np.save(path, np.float32(1)),
    ],
)
@pytest.mark.parametrize("name", ["input", "output"])
def test_goldens_that_are_none_are_refused(
    write: Callable[[Path], object], name: str, copy: Path
) -> None:
    write(copy / "golden" / f"{name}.npy")
    rehash(copy)
    with pytest.raises(DataError, match="golden"):
        verify_published(copy)


def test_weights_of_another_shape_are_refused(copy: Path) -> None:
    weights = read_safetensors((copy / "model.safetensors").read_bytes())
    weights["input.mean"] = np.zeros(1, np.float32)  # would broadcast
    (copy / "model.safetensors").write_bytes(safetensors.numpy.save(weights))
    rehash(copy)
    with pytest.raises(DataError, match="not the weights of a model"):
        verify_published(copy)


@pytest.mark.parametrize("name", ["model.onnx", "model.torchscript.pt", "model.pt2"])
def test_a_model_that_cannot_be_loaded_is_a_fault_not_a_crash(name: str, copy: Path) -> None:
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[: len(content) // 2])
    rehash(copy)
    faults = verify_published(copy).faults
    assert faults
    assert all(fault.startswith(name) for fault in faults)


def test_where_nothing_can_run_the_models_nothing_is_verified(
    published: Path, tmp_path: Path
) -> None:
    """numpy alone: an input is missing, which is no verdict on the files."""
    site = Path(np.__file__).parent.parent
    for name in ("numpy", "numpy.libs"):
        if (site / name).exists():
            (tmp_path / name).symlink_to(site / name)
    done = subprocess.run(
        [sys.executable, "-S", "-m", "job", "verify", str(published), "--log-format", "text"],
        cwd=ROOT,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 66, done.stderr
    assert "install onnxruntime" in done.stderr


# safetensors.


def safetensors_of(header: object, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def tensor(shape: list[Any], begin: Any, end: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


def test_a_good_file_is_read_with_its_empty_and_scalar_tensors() -> None:
    tensors = {
        "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
        "none": np.zeros((0, 3), np.float32),
        "scalar": np.array(7, np.float32),
    }
    content = safetensors.numpy.save(tensors, metadata={"format": "pt"})
    found = read_safetensors(content)
    assert found.keys() == tensors.keys()
    for name, values in safetensors.numpy.load(content).items():
        assert found[name].dtype == values.dtype == np.float32
        assert np.array_equal(found[name], values)
        assert found[name].shape == values.shape


@pytest.mark.parametrize(
    "content",
    [
        safetensors_of({"a": tensor([1], 0, 4)}, b"\0" * 8),
        safetensors_of({"a": tensor([1], 4, 8)}, b"\0" * 8),
        safetensors_of({"a": tensor([1], 0, 4), "b": tensor([1], 0, 4)}, b"\0" * 4),
        safetensors_of({"a": tensor([1], 0, 4), "b": tensor([1], 8, 12)}, b"\0" * 12),
        safetensors_of({"a": tensor([-1], 0, 4)}, b"\0" * 4),
        safetensors_of({"a": tensor([-1, -1], 0, 4)}, b"\0" * 4),
        safetensors_of({"a": tensor([1], -4, 0)}, b""),
        safetensors_of({"a": tensor([2], 0, 4)}, b"\0" * 4),
        safetensors_of({"a": tensor([1.0], 0, 4)}, b"\0" * 4),
        safetensors_of({"a": tensor(["x"], 0, 4)}, b"\0" * 4),
        safetensors_of({"a": tensor([1], "0", "4")}, b"\0" * 4),
        safetensors_of({"a": {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]}}, b"\0" * 4),
        safetensors_of({"a": {"dtype": "F32", "shape": [1]}}, b"\0" * 4),
        safetensors_of({"a": tensor([10**30], 0, 4 * 10**30)}, b"\0" * 4),
        safetensors_of({"a": [1]}, b"\0" * 4),
        safetensors_of(b"[" * 100_000, b""),
        safetensors_of(b"\xff\xfe", b""),
        safetensors_of(b'{"a": NaN}', b""),
        (2**62).to_bytes(8, "little") + b"{}",
        b"\x02",
    ],
)
def test_a_malformed_file_is_refused(content: bytes) -> None:
    with pytest.raises(DataError):
        read_safetensors(content)
