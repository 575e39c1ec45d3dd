"""Damaged files are refused by their hashes before any runtime sees them; files whose hashes fit
and whose content does not, by name; and nothing is written but into the temporary folder.
"""

import hashlib
import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.numpy
import torch
from torch import nn

from job import torchscript
from job.errors import DataError, ExportMismatch
from job.manifest import read_manifest
from job.predict import predict_file
from job.verify import verify_published
from job.verify.engines import load_onnx
from job.verify.weights import read_safetensors
from tests.conftest import ROOT, Job

from .folders import rehash


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_a_copy_of_another_name_is_as_good(copy: Path) -> None:
    rehash(copy)
    verify_published(copy).require_agreement()


# Bytes that were changed or cut off.

# In a process of its own, in which a runtime would be seen.
DAMAGE = """
import json, sys
from collections import Counter
from pathlib import Path
import numpy as np
from job.errors import DataError, ExportMismatch
from job.predict import predict_file
from job.verify import verify_published

folder = Path(sys.argv[1])
files = sorted(path for path in folder.rglob("*") if path.is_file())
draw = np.random.Generator(np.random.Philox(0))
refused, passed = Counter(), []
for number in range(2200):
    path = files[number % len(files)]
    content = path.read_bytes()
    at = int(draw.integers(len(content)))
    changed = bytes([content[at] ^ int(draw.integers(1, 256))])
    damaged = content[:at] + (changed + content[at + 1 :] if number < 2000 else b"")
    path.write_bytes(damaged)
    try:
        verify_published(folder)
        passed.append([path.name, at])
    except DataError:
        refused[path.relative_to(folder).as_posix()] += 1
    path.write_bytes(content)
seen = [name for name in ("onnxruntime", "torch", "onnx") if name in sys.modules]
print(json.dumps({"refused": refused, "passed": passed, "seen": seen}))
"""


def test_2000_flipped_and_200_cut_files_are_refused_before_a_runtime_sees_them(copy: Path) -> None:
    command = [sys.executable, "-c", DAMAGE, str(copy)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert (found["passed"], found["seen"]) == ([], [])
    names = [path.relative_to(copy).as_posix() for path in files_of(copy)]
    assert {"manifest.json", "manifest.sha256", "report.html", "model.pt2"} < set(names)
    assert sorted(found["refused"]) == sorted(names)
    assert sum(found["refused"].values()) == 2200


def imported(stderr: str) -> set[str]:
    """What a process with PYTHONPROFILEIMPORTTIME says that it imported."""
    return set(re.findall(r"^import time:.*\| +(\S+)$", stderr, re.MULTILINE))


@pytest.mark.parametrize("name", ["model.torchscript.pt", "report.html", "manifest.json"])
@pytest.mark.parametrize("command", ["verify", "predict"])
def test_the_command_ends_with_65_and_has_not_loaded_a_runtime(
    command: str, name: str, copy: Path, job: Job, tmp_path: Path
) -> None:
    arguments = [command, str(copy)]
    if command == "predict":
        source = copy / "golden" / "input.npy"
        arguments += ["--input", str(source), "--output", str(tmp_path / "out.npy")]
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[:-9] + b"?" + content[-8:])
    done = job(*arguments, env={"PYTHONPROFILEIMPORTTIME": "1"})
    assert done.returncode == 65
    assert "numpy" in imported(done.stderr)
    assert not imported(done.stderr) & {"onnxruntime", "torch", "onnx"}
    if (command, name) == ("predict", "report.html"):  # would a runtime have been seen?
        (copy / name).write_bytes(content)
        done = job(*arguments, env={"PYTHONPROFILEIMPORTTIME": "1"})
        assert done.returncode == 0
        assert "onnxruntime" in imported(done.stderr)


def test_no_bit_of_the_manifests_hash_may_change_nor_its_end_be_missing(copy: Path) -> None:
    path = copy / "manifest.sha256"
    line = path.read_bytes()
    damaged = [line[:at] for at in range(len(line))] + [line + b"\n", line.replace(b" ", b"\t")]
    for at in range(len(line)):
        changed = (bytes([line[at] ^ 1 << bit]) for bit in range(8))
        damaged += [line[:at] + byte + line[at + 1 :] for byte in changed]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"manifest\.json does not have the hash"):
            read_manifest(copy)


def test_a_manifest_that_still_reads_well_is_refused_by_its_hash(copy: Path) -> None:
    """Another digit in a loss or in a hash leaves good JSON: only manifest.sha256 can tell."""
    path = copy / "manifest.json"
    content = path.read_bytes()
    well = 0
    for digit in list(re.finditer(rb"\d", content))[::7]:
        other = content[: digit.start()] + b"%d" % (int(digit[0]) ^ 1) + content[digit.end() :]
        try:
            json.loads(other)
        except ValueError:
            continue  # a number that begins with 0
        well += 1
        path.write_bytes(other)
        with pytest.raises(DataError, match=r"does not have the hash in manifest\.sha256"):
            read_manifest(copy)
    assert well > 50


# Manifests whose hash fits.


def seal(folder: Path, content: bytes) -> None:
    """Any bytes as a manifest, with the hash that fits."""
    (folder / "manifest.json").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    (folder / "manifest.sha256").write_text(f"{digest}  manifest.json\n")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"contract": 1}',
        b'{"contract": 1, "files": null}',
        b'{"contract": 1, "files": ["model.onnx"]}',
        b'{"contract": 1, "files": [{}]}',
        b'{"contract": 1, "files": {"model.onnx": null}}',
        b'{"contract": 1, "files": {"model.onnx": {}}}',
    ],
)
def test_a_manifest_of_another_form_is_refused(content: bytes, copy: Path) -> None:
    seal(copy, content)
    with pytest.raises(DataError):
        read_manifest(copy)


OUTSIDE = ["../outside", "golden/../../outside", "{outside}", "golden//input.npy", "./model.onnx"]


@pytest.mark.parametrize("name", [*OUTSIDE, "", ".", "golden", "a\0b", "\ud800", "x" * 300])
def test_a_file_that_does_not_lie_in_the_folder_is_not_opened(name: str, copy: Path) -> None:
    outside = copy.parent / "outside"
    outside.write_bytes(b"secret")
    entry = {"sha256": hashlib.sha256(b"secret").hexdigest(), "bytes": 6}
    name = name.format(outside=outside)
    rehash(copy, lambda manifest: manifest["files"].update({name: entry}))
    with pytest.raises(DataError, match="is missing"):
        read_manifest(copy)


def without_onnx(manifest: dict[str, Any]) -> None:
    del manifest["files"]["model.onnx"]


@pytest.mark.parametrize(
    "edit",
    [
        without_onnx,
        lambda manifest: manifest.pop("signature"),
        lambda manifest: manifest.update(signature={"inputs": [], "outputs": []}),
        lambda manifest: manifest["signature"]["outputs"][0].update(shape=["batch", "many"]),
    ],
)
def test_predict_runs_no_model_that_the_manifest_does_not_describe(
    edit: Callable[[dict[str, Any]], object], copy: Path, job: Job, tmp_path: Path
) -> None:
    rehash(copy, edit)
    source, target = copy / "golden" / "input.npy", tmp_path / "out.npy"
    done = job("predict", str(copy), "--input", str(source), "--output", str(target))
    assert done.returncode == 65, done.stderr
    assert not target.exists()


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


@pytest.mark.parametrize(
    "change",
    [
        {"model": None},
        {"model": []},
        {"model": {}},
        {"model": {"activation": ["relu"]}},
        {"model": {"activation": None}},
        {"model": {"activation": "bogus"}},
        {"files": []},
        {"contract": 2},
    ],
)
def test_a_manifest_without_activation_files_or_the_known_contract_is_refused(
    change: dict[str, object], copy: Path
) -> None:
    rehash(copy, lambda manifest: manifest.update(change))
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


# Weights outside the file.


@pytest.mark.parametrize("place", ["{cwd}", "{cwd}/..", "..", "."])
def test_weights_outside_the_file_are_not_followed_even_where_they_are_right(
    place: str, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cwd = tmp_path / "cwd"
    cwd.mkdir()
    monkeypatch.chdir(cwd)
    location = os.path.join(place.format(cwd=cwd), "weights.bin")
    model = onnx.load(copy / "model.onnx")
    weight = next(w for w in model.graph.initializer if w.name == "network.0.weight")
    Path(location).write_bytes(weight.raw_data)
    onnx.external_data_helper.set_external_data(weight, location)
    weight.ClearField("raw_data")
    content = model.SerializeToString()
    (copy / "model.onnx").write_bytes(content)
    rehash(copy)
    if place == ".":  # what there is to fear
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        assert session.run(None, {"input": np.load(copy / "golden" / "input.npy")})
    faults = verify_published(copy).faults
    for how in ("optimised", "not optimised"):
        line = f"model.onnx in onnxruntime, {how}, load: cannot be loaded: weights lie outside"
        assert any(fault.startswith(line) for fault in faults)
    source, target = copy / "golden" / "input.npy", tmp_path / "out.npy"
    with pytest.raises(ExportMismatch, match="weights lie outside"):
        predict_file(copy, source, target)


def field(tag: bytes, content: bytes) -> bytes:
    """A field of a protobuf message; parts of a message may follow each other."""
    return tag + bytes([len(content) & 127 | 128, len(content) >> 7]) + content


@pytest.mark.parametrize(
    "key", [b"\x0a\x08", b"\x0a\x88\0", b"\x8a\0\x08", b"\x8a\x80\0\x88\x80\0"]
)
def test_weights_outside_are_seen_however_long_their_key_is_written(
    key: bytes, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = onnx.load(copy / "model.onnx")
    outside = next(w for w in model.graph.initializer if w.name == "network.0.weight")
    model.graph.initializer.remove(outside)
    Path("weights.bin").write_bytes(outside.raw_data)
    outside.ClearField("raw_data")
    outside.data_location = onnx.TensorProto.EXTERNAL
    entry = field(b"\x6a", key + b"location" + field(b"\x12", b"weights.bin"))
    graph = field(b"\x2a", outside.SerializeToString() + entry)
    content = model.SerializeToString() + field(b"\x3a", graph)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    assert session.run(None, {"input": np.load(copy / "golden" / "input.npy")})
    with pytest.raises(ExportMismatch, match="weights lie outside"):
        load_onnx(content)


# Files that are code.


class Writes(nn.Module):
    """Writes a file as soon as it is loaded."""

    path: str

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return (self.path, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.path = state[0]
        self.training = state[1]
        torch.save(torch.zeros(1), self.path)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def hostile_torchscript(path: Path, marker: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(Writes(str(marker))), path)


class Makes:
    """Makes a folder as soon as it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.marker),)


def hostile_program(path: Path, marker: Path) -> None:
    """torch.export.load unpickles what it does not know."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(buffer, "w") as hostile:
        for name in archive.namelist():
            content = archive.read(name)
            hostile.writestr(name, pickle.dumps(Makes(marker)) if "inputs" in name else content)
    path.write_bytes(buffer.getvalue())


def load_program(content: bytes) -> None:
    with pytest.raises(RuntimeError):
        torch.export.load(io.BytesIO(content))


@pytest.mark.parametrize(
    ("name", "make", "load"),
    [
        ("model.torchscript.pt", hostile_torchscript, torchscript.load),
        ("model.pt2", hostile_program, load_program),
    ],
)
def test_what_is_code_is_not_loaded_where_its_hash_does_not_fit(
    name: str,
    make: Callable[[Path, Path], None],
    load: Callable[[bytes], object],
    copy: Path,
    job: Job,
    tmp_path: Path,
) -> None:
    marker = tmp_path / "marker"
    make(copy / name, marker)
    done = job("verify", str(copy))
    assert done.returncode == 65
    assert f"{name} is not the file that was published" in done.stderr
    assert not marker.exists()
    load((copy / name).read_bytes())  # what there is to fear
    assert marker.exists()


# Somebody else's folder: it is only read.


class Watched(NamedTuple):
    """One `verify` of a copy, whose places are all known, and the system calls that it made."""

    done: subprocess.CompletedProcess[str]
    places: Path
    before: dict[str, tuple[int, bytes]]
    calls: list[str] | None

    def now(self) -> dict[str, tuple[int, bytes]]:
        kept = [path for path in files_of(self.places) if path.name != "calls"]
        return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in kept}


CALLS = "open,openat,openat2,creat,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,symlink"
CALLS += ",symlinkat,mknod,mknodat,truncate,unlink,unlinkat,rmdir,chmod,fchmodat"


@pytest.fixture(scope="module")
def watched(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    places = tmp_path_factory.mktemp("places")
    for name in ("home", "cwd", "tmp"):
        (places / name).mkdir()
    shutil.copytree(published, places / "folder")
    command = [sys.executable, "-m", "job", "verify", str(places / "folder")]
    strace = shutil.which("strace")
    if strace is not None:
        command = [strace, "-f", "-o", str(places / "calls"), "-e", CALLS, *command]
    environment = {
        "HOME": str(places / "home"),
        "TMPDIR": str(places / "tmp"),
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    watched = Watched(subprocess.CompletedProcess([], 0), places, {}, None)
    before = watched.now()
    done = subprocess.run(
        command, cwd=places / "cwd", env=environment, capture_output=True, text=True, check=False
    )
    calls = (places / "calls").read_text().splitlines() if strace else None
    return Watched(done, places, before, calls)


def test_verifying_leaves_folder_home_and_working_directory_as_they_were(watched: Watched) -> None:
    verified = (0, f"{watched.places / 'folder'}\n")
    assert (watched.done.returncode, watched.done.stdout) == verified, watched.done.stderr
    assert watched.now() == watched.before
    for name in ("home", "cwd"):
        assert list((watched.places / name).iterdir()) == []


def test_verifying_writes_nothing_outside_the_temporary_folder(watched: Watched) -> None:
    if watched.calls is None:
        pytest.skip("strace, which would watch the system calls, is not installed")
    assert watched.done.returncode == 0, watched.done.stderr
    writing = [
        call
        for call in watched.calls
        if re.search(r" (open|openat|openat2)\(", call) is None
        or re.search(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC", call)
    ]
    writing = [call for call in writing if re.search(r"^\d+ +\w+\(", call)]
    inside = [call for call in writing if f'"{watched.places}/tmp/' in call]
    assert inside, "nothing was seen, not even what is known to happen"
    assert [call for call in writing if call not in inside and '"/dev/null"' not in call] == []


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
        safetensors_of(b"{'a':1}", b""),
        safetensors_of([], b""),
        safetensors_of({"a": 1}, b""),
        safetensors_of({"a": tensor([1], 0, 4) | {"dtype": "I32"}}, b"\0" * 4),
        safetensors.numpy.save({"a": np.zeros(3, np.float64)}),
        safetensors.numpy.save({"a": np.zeros(3, np.float32)})[:-1],
        (2**62).to_bytes(8, "little") + b"{}",
        b"\xff" * 8,
        b"\x02",
        b"",
    ],
)
def test_a_malformed_file_is_refused(content: bytes) -> None:
    with pytest.raises(DataError):
        read_safetensors(content)
