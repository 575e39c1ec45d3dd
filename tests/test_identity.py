"""Fingerprints: equal only where all is equal that decides the model's bytes."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from job import identity
from job.config import load_config
from job.device import Device
from job.identity import identify
from job.ranks import Ranks

DEVICE = Device("cpu", 0, "a processor", "asked for", 1, "asked for")


def of(*keys: str, device: Device = DEVICE) -> str:
    return identify(load_config(None, keys), device).fingerprint


@pytest.mark.parametrize(
    "changed",
    [
        lambda: of("seed=1"),
        lambda: of("train.epochs=6"),
        lambda: of(device=replace(DEVICE, type="cuda")),
        lambda: of(device=replace(DEVICE, threads=2)),
        lambda: of(device=replace(DEVICE, ranks=Ranks(0, 2))),
    ],
    ids=["seed", "epochs", "device", "threads", "processes"],
)
def test_what_decides_the_bytes_is_in_it(changed: Callable[[], str]) -> None:
    assert changed() != of()


@pytest.mark.parametrize(
    "same",
    [
        lambda: of("output.dir=elsewhere", "output.keep=1"),
        lambda: of("train.checkpoint={every: 2}"),
        lambda: of(device=replace(DEVICE, name="another", reason="no CUDA", index=1)),
    ],
    ids=["output", "checkpoint", "words"],
)
def test_what_does_not_is_not(same: Callable[[], str]) -> None:
    assert same() == of()


def test_sources_and_versions_are_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = of()
    with monkeypatch.context() as other:
        other.setattr(identity, "_sources", lambda: "others")
        assert of() != before
    with monkeypatch.context() as other:
        other.setattr(identity, "versions", lambda: {"torch": "another"})
        assert of() != before
    assert of() == before


def test_a_data_file_is_its_content_wherever_it_lies() -> None:
    def table(path: str, sha256: str) -> str:
        keys = ("data.kind=file", "data.target=y", f"data.path={path}", f'data.sha256="{sha256}"')
        return of(*keys)

    assert table("a.csv", "0" * 64) == table("b.csv", "0" * 64) != table("a.csv", "1" * 64)
