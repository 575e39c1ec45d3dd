"""`seed: run`: each run draws anew, and what it drew can be drawn again."""

import re
from pathlib import Path

import pytest

from job.config import Config, load_config
from job.device import choose_device
from job.identity import identify

from .conftest import manifest_of, run_job
from .test_job import FILES
from .test_resume import KEYS, disturbed

DEVICE = choose_device(load_config(None, ["device=cpu"]))


def test_the_run_id_gives_the_seed() -> None:
    config = load_config(None, ["seed=run"])
    seeds = {name: config.for_run(name).seed_number for name in ("one", "two", "a" * 128)}
    assert len(set(seeds.values())) == 3
    assert all(0 <= seed < 2**48 for seed in seeds.values())
    assert (
        seeds["one"] == 130372720211264
    )  # sha256sum's first 48 bits; a change changes what every id means
    assert config.for_run("one") == load_config(None, [f"seed={seeds['one']}"])


def test_a_seed_that_is_a_number_is_every_runs() -> None:
    config = Config(seed=7)
    assert config.for_run("one") is config


def test_a_runs_fingerprint_is_that_of_its_number() -> None:
    config = load_config(None, ["seed=run"])
    number = load_config(None, [f"seed={config.for_run('one').seed}"])
    assert identify(config.for_run("one"), DEVICE) == identify(number, DEVICE)
    prints = {identify(c, DEVICE).fingerprint for c in (config, number, config.for_run("two"))}
    assert len(prints) == 3


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed and went on when the command was repeated, and then another."""
    output = tmp_path_factory.mktemp("seed") / "out"
    options = ("seed=run", "--output", str(output))
    process = disturbed("SIGKILL", "job.train.backprop:Backpropagation.step", 10, *options)
    process.communicate()
    for _ in range(2):
        done = run_job("train", *KEYS, *options)
        assert done.returncode == 0, done.stderr
    return output


def runs(output: Path) -> list[Path]:
    return sorted((output / "runs").iterdir(), key=lambda run: manifest_of(run)["created"])


def test_a_run_that_was_cut_off_goes_on_with_its_own_seed_and_the_next_draws_anew(
    output: Path,
) -> None:
    first, second = runs(output)
    assert [manifest_of(run)["training"]["resumed"] for run in (first, second)] == [1, 0]
    for run in (first, second):
        seed = load_config(None, ["seed=run"]).for_run(run.name).seed
        assert f"seed: {seed}\n" in (run / "job.yaml").read_text()
    assert manifest_of(first)["data"]["sha256"] != manifest_of(second)["data"]["sha256"]
    assert manifest_of(first)["fingerprint"] != manifest_of(second)["fingerprint"]
    for name in ("model.onnx", "model.safetensors", "golden/input.npy", "metrics.jsonl"):
        assert (first / name).read_bytes() != (second / name).read_bytes(), name
    # Their names share the fingerprint of the configuration as it is written.
    names = [re.fullmatch(r"\d{8}T\d{6}Z-([0-9a-f]{8})-[0-9a-f]{6}", r.name) for r in runs(output)]
    assert names[0] is not None
    assert names[1] is not None
    assert names[0][1] == names[1][1]


def test_running_its_id_again_finds_it_published(output: Path) -> None:
    run = runs(output)[0]
    before = (run / "manifest.json").read_bytes()
    done = run_job("train", *KEYS, "seed=run", "--output", str(output), "--run-id", run.name)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{run}\n"
    assert "published_before" in done.stderr
    assert '"event": "epoch"' not in done.stderr
    assert (run / "manifest.json").read_bytes() == before


def test_its_published_config_reproduces_the_model_files(output: Path, tmp_path: Path) -> None:
    run = runs(output)[0]
    assert "\noutput:" not in (run / "job.yaml").read_text()
    done = run_job("train", "--config", str(run / "job.yaml"), "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    for name in FILES - {"report.html", "verification.json"}:
        assert (tmp_path / "latest" / name).read_bytes() == (run / name).read_bytes(), name
    assert manifest_of(tmp_path / "latest")["fingerprint"] == manifest_of(run)["fingerprint"]
