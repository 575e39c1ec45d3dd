"""The whole job through the real command, with small data; and the wrong ends it can come to."""

import hashlib
import json
import math
import os
import re
import shutil
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from job import pipeline
from job.clock import Clock
from job.config import load_config
from job.errors import ExportMismatch
from job.forkserver import ForkServer
from job.ranks import Ranks
from job.verify import verify_published

from .conftest import SMALL, Boot, Job, manifest_of, wrong_bias

FILES = {
    "golden/input.npy",
    "golden/output.npy",
    "job.yaml",
    "metrics.jsonl",
    "model.onnx",
    "model.pt2",
    "model.safetensors",
    "model.torchscript.pt",
    "report.html",
    "test_data_set_0/input_0.pb",
    "test_data_set_0/output_0.pb",
    "verification.json",
}


def test_the_published_files_are_those_of_the_contract(published: Path) -> None:
    there = {p.relative_to(published).as_posix() for p in published.rglob("*") if p.is_file()}
    assert there == FILES | {"manifest.json", "manifest.sha256"}
    assert set(manifest_of(published)["files"]) == FILES


def test_the_manifest_has_the_pinned_fields(published: Path) -> None:
    manifest = manifest_of(published)
    assert manifest["contract"] == 1
    assert manifest["run_id"] == "small"
    assert re.fullmatch("[0-9a-f]{64}", str(manifest["fingerprint"]))
    assert str(manifest["created"]).endswith("Z")
    assert datetime.fromisoformat(str(manifest["created"])).tzinfo is not None
    assert manifest["signature"] == {
        "task": "regression",
        "inputs": [
            {
                "name": "input",
                "dtype": "float32",
                "shape": ["batch", 10],
                "features": [f"x{i}" for i in range(10)],
            }
        ],
        "outputs": [
            {"name": "output", "dtype": "float32", "shape": ["batch", 1], "targets": ["y"]}
        ],
    }
    for name, entry in manifest["files"].items():
        content = (published / name).read_bytes()
        assert entry == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    assert manifest["data"].keys() == {"kind", "rows", "sha256", "floor"}
    assert manifest["data"]["floor"] == {"mse": 1.0, "mae": pytest.approx((2 / math.pi) ** 0.5)}
    assert manifest["metrics"].keys() == {"validation", "test"}
    assert manifest["metrics"]["test"].keys() >= {"loss", "mse", "r2", "excess_risk"}
    training = manifest["training"]
    assert (training["epochs"], training["steps"], training["resumed"]) == (2, 14, 0)
    assert training["samples_per_second"] > 0
    assert manifest["device"].keys() == {"type", "name", "reason", "threads", "world_size"}
    assert manifest["timing"].keys() >= {"total", "import", "data", "train", "export", "verify"}
    assert manifest["timing"]["total"] < 600
    assert manifest["verification"]["passed"] is True
    assert manifest["verification"]["batches"] == [1, 2, 3, 7, 64, 257, 512]
    assert manifest["verification"]["mutants"] == {"rejected": 23, "of": 23}
    assert 0 < manifest["verification"]["headroom"] <= 1
    assert manifest["versions"].keys() >= {"python", "torch", "onnx", "onnxruntime"}
    assert manifest["source"].keys() == {"revision", "image"}


def test_verification_json_holds_every_comparison_and_no_hash(published: Path) -> None:
    text = (published / "verification.json").read_text()
    verification = json.loads(text)
    assert verification["passed"] is True
    assert verification["self_check"]["score"].startswith("23 of 23 wrong exports rejected")
    assert "23 of 23 wrong exports rejected" in (published / "report.html").read_text()
    assert len(verification["comparisons"]) == manifest_of(published)["verification"]["comparisons"]
    assert not re.search("[0-9a-f]{64}", text)
    seen = {(c["artifact"], c["engine"]) for c in verification["comparisons"]}
    assert seen >= {
        ("trained model", "torch"),
        ("model.onnx", "onnxruntime, not optimised"),
        ("model.onnx", "onnxruntime, optimised"),
        ("model.torchscript.pt", "torch.jit"),
        ("model.pt2", "torch.export"),
        ("model.safetensors", "weights"),
    }
    for batch in (1, 2, 3, 7, 64, 257):
        assert f"held-out rows, batch {batch}" in {c["case"] for c in verification["comparisons"]}


def test_metrics_have_one_line_an_epoch_and_no_times(published: Path) -> None:
    lines = [json.loads(line) for line in (published / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    keys = {"epoch", "steps", "learning_rate", "training_loss", "validation"}
    assert all(line.keys() == keys for line in lines)


def test_nothing_private_is_published(published: Path) -> None:
    import getpass
    import socket

    for path in published.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert str(published.parent.parent).encode() not in content, path
            assert socket.gethostname().encode() not in content, path
            assert f"/{getpass.getuser()}/".encode() not in content, path


@pytest.mark.parametrize("missing", ["model.onnx", "manifest.sha256", "golden/input.npy"])
def test_verify_refuses_a_folder_that_lacks_a_file(
    missing: str, published: Path, job: Job, tmp_path: Path
) -> None:
    copy = shutil.copytree(published, tmp_path / "copy")
    (copy / missing).unlink()
    done = job("verify", str(copy))
    assert done.returncode == 65
    assert f"'{missing}' is missing" in done.stderr


def test_verify_of_nothing_is_66(job: Job, tmp_path: Path) -> None:
    assert job("verify", str(tmp_path)).returncode == 66


def test_without_an_id_a_run_gets_its_own(output: Path, job: Job, tmp_path: Path) -> None:
    """Also where a run of its fingerprint is published."""
    folder = shutil.copytree(output, tmp_path / "out", symlinks=True)
    done = job("train", *SMALL, "--output", str(folder))
    assert done.returncode == 0, done.stderr
    (name,) = {path.name for path in (folder / "runs").iterdir()} - {"small"}
    small, own = (manifest_of(folder / "runs" / one)["fingerprint"] for one in ("small", name))
    assert small == own
    assert re.fullmatch(rf"\d{{8}}T\d{{6}}Z-{own[:8]}-[0-9a-f]{{6}}", name)


# What ends badly. In-process, so that one part can be made to go wrong.


def run_here(output: Path) -> Path:
    config = load_config(None, [*SMALL, f"output.dir={output}"])
    with ForkServer() as server:
        return pipeline.run_job(config, "run", Clock(0.0), server, Ranks())


# In a fork server: every TorchScript file but the preflight's is that of an untrained model.
UNTRAINED = """
import torch
from job import export
right, written = export.write_torchscript, []
def wrong(traced, path):
    if written:
        untrained = export.MLP(10, (100,), 1, "relu").eval()
        traced = export.torchscript.trace(untrained, torch.zeros(2, 10))
    written.append(path)
    right(traced, path)
export.write_torchscript = wrong
"""


def test_a_wrong_export_is_81_and_nothing_is_published(
    output: Path, tmp_path: Path, boot: Boot
) -> None:
    """Beside a good run, which `latest` goes on to name."""
    boot(wrong_bias(spared="preflight"))
    output = shutil.copytree(output, tmp_path / "out", symlinks=True)
    with pytest.raises(ExportMismatch, match=r"model\.onnx") as caught:
        run_here(output)
    assert caught.value.code == 81
    assert "untrained" not in str(caught.value)
    assert [run.name for run in (output / "runs").iterdir()] == ["small"]
    assert os.readlink(output / "latest") == "runs/small"
    assert not verify_published(output / "latest").faults
    evidence = output / "failed" / "run"
    assert {p.name for p in evidence.iterdir()} == {
        "report.html",
        "verification.json",
        "failing_input.npy",
        "metrics.jsonl",
    }
    found = json.loads((evidence / "verification.json").read_text())
    assert found["passed"] is False
    assert found["diagnosis"]["first_layer"] == "network.0"
    assert np.load(evidence / "failing_input.npy").shape == (1, 10)
    report = (evidence / "report.html").read_text()
    assert "DIFFERS" in report
    assert "It parts from the model at network.0. The input is in" in " ".join(report.split())


def test_a_swapped_torchscript_is_81_too(tmp_path: Path, boot: Boot) -> None:
    boot(UNTRAINED)
    with pytest.raises(ExportMismatch, match=r"model\.torchscript\.pt") as caught:
        run_here(tmp_path / "out")
    assert "untrained" not in str(caught.value)
    assert not list((tmp_path / "out" / "runs").iterdir())
    assert not (tmp_path / "out" / "latest").is_symlink()


def test_a_model_that_memorises_is_told_and_one_that_learns_is_not(
    small: tuple[Path, str], job: Job, tmp_path: Path
) -> None:
    noise = (
        "data={kind: noise, samples: 400, features: 20}",
        "train={epochs: 150, batch_size: 64}",
    )
    memorising = job("train", "--output", str(tmp_path), *noise, "model.hidden=[200]")
    assert memorising.returncode == 0, memorising.stderr
    assert "the model is memorising noise" in memorising.stderr
    assert "memorising" not in small[1]
