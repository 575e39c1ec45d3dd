"""deploy/ agrees with the job: exit codes, configuration, version. No cluster is needed."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import job
from job.errors import ExitCode

from .conftest import ROOT

KUBERNETES = ROOT / "deploy" / "kubernetes"
SCHEDULERS = (ROOT / "docs" / "schedulers.md").read_text()

# What must become of a Job when its pod ends with a code: the contract's advice to schedulers.
MEANT = {
    ExitCode.USAGE: "FailJob",
    ExitCode.DATA: "FailJob",
    ExitCode.NO_INPUT: "FailJob",
    ExitCode.UNAVAILABLE: "FailJob",
    ExitCode.SOFTWARE: "Count",
    ExitCode.NO_MEMORY: "FailJob",
    ExitCode.CANNOT_CREATE: "FailJob",
    ExitCode.IO: "Count",
    ExitCode.INTERRUPTED: "Ignore",
    ExitCode.NO_PERMISSION: "FailJob",
    ExitCode.CONFIG: "FailJob",
    ExitCode.DIVERGED: "FailJob",
    ExitCode.MISMATCH: "FailJob",
    ExitCode.QUALITY: "FailJob",
}
# No code of the job: a crash, the kernel's kill, a second signal.
NOT_OURS = (1, 2, 126, 130, 137, 143)


def load(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(path.read_text())
    return loaded


@pytest.fixture(scope="module")
def spec() -> dict[str, Any]:
    loaded: dict[str, Any] = load(KUBERNETES / "base" / "training.yaml")["spec"]
    return loaded


def action(spec: dict[str, Any], code: int, conditions: tuple[str, ...] = ()) -> str:
    """What a server does with a failed pod: the first rule that fits; without one it counts."""
    for rule in spec["podFailurePolicy"]["rules"]:
        codes = rule.get("onExitCodes")
        if codes is not None:
            assert codes["operator"] == "In"
            fits = code in codes["values"]
        else:
            wanted = [(one["type"], one["status"]) for one in rule["onPodConditions"]]
            fits = any((condition, "True") in wanted for condition in conditions)
        if fits:
            return str(rule["action"])
    return "Count"


def test_every_code_but_success_has_a_meaning_for_kubernetes() -> None:
    assert set(MEANT) == set(ExitCode) - {ExitCode.OK}


@pytest.mark.parametrize("code", MEANT, ids=lambda code: code.name)
def test_every_exit_code_meets_its_rule(spec: dict[str, Any], code: ExitCode) -> None:
    assert action(spec, code) == MEANT[code]


@pytest.mark.parametrize("code", NOT_OURS)
def test_what_is_no_code_of_the_job_counts(spec: dict[str, Any], code: int) -> None:
    assert action(spec, code) == "Count"


@pytest.mark.parametrize("code", [*MEANT, *NOT_OURS], ids=str)
def test_a_disrupted_pod_never_counts(spec: dict[str, Any], code: int) -> None:
    assert action(spec, code, ("DisruptionTarget",)) == "Ignore"


def test_no_rule_names_a_code_that_the_job_does_not_have(spec: dict[str, Any]) -> None:
    rules = [rule["onExitCodes"] for rule in spec["podFailurePolicy"]["rules"][1:]]
    assert {code for rule in rules for code in rule["values"]} <= set(ExitCode)


def test_ignored_failures_are_bounded_by_time(spec: dict[str, Any]) -> None:
    assert spec["activeDeadlineSeconds"] > 0


def test_the_configmap_is_made_from_the_shipped_job_yaml() -> None:
    assert (KUBERNETES / "base" / "job.yaml").read_bytes() == (ROOT / "job.yaml").read_bytes()


@pytest.mark.parametrize(
    ("overlay", "kind"), [("cpu", "cpu"), ("gpu", "cuda"), ("distributed", "cpu")]
)
def test_an_overlays_image_is_the_one_that_make_builds(overlay: str, kind: str) -> None:
    [image] = load(KUBERNETES / "overlays" / overlay / "kustomization.yaml")["images"]
    assert f"job:{image['newTag']}" == f"job:{job.__version__}-{kind}"


def test_a_cronjobs_run_ends_before_its_next_tick(spec: dict[str, Any]) -> None:
    """Forbid would leave that tick out."""
    schedule = load(KUBERNETES / "overlays" / "cronjob" / "cronjob.yaml")["spec"]["schedule"]
    assert re.fullmatch(r"\d+ \d+ \* \* \*", schedule)  # daily
    assert spec["activeDeadlineSeconds"] < 24 * 3600


def test_the_docs_table_is_what_the_rules_do(spec: dict[str, Any]) -> None:
    rows = re.findall(r"^\| (\d+) \| (\w+) \| (\w+) \|", SCHEDULERS, re.MULTILINE)
    assert rows == [(str(int(code)), code.name, action(spec, code)) for code in MEANT]


def test_every_overlay_is_explained() -> None:
    for overlay in (KUBERNETES / "overlays").iterdir():
        assert f"`{overlay.name}`" in SCHEDULERS, overlay.name


def test_the_crontabs_image_is_the_one_that_make_builds() -> None:
    crontab = (ROOT / "deploy" / "cron" / "crontab").read_text()
    assert re.findall(r" (job:\S+) ", crontab) == [f"job:{job.__version__}-cpu"]
