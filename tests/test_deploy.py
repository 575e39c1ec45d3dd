"""deploy/ agrees with the job: exit codes, configuration, version. No cluster is needed."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

import job
from job.errors import ExitCode

from .conftest import ROOT

KUBERNETES = ROOT / "deploy" / "kubernetes"
OVERLAYS = sorted(path.name for path in (KUBERNETES / "overlays").iterdir())
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


def build(overlay: str) -> dict[str, Any]:
    """The spec of the Job that plain kubectl makes of an overlay, or of a CronJob's Jobs."""
    if shutil.which("kubectl") is None:
        reason = "THERE IS NO KUBECTL: no overlay is built"
        if "CI" in os.environ:
            pytest.fail(reason)
        pytest.skip(reason)
    command = ["kubectl", "kustomize", str(KUBERNETES / "overlays" / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    objects = {each["kind"]: each for each in yaml.safe_load_all(done.stdout)}
    if "CronJob" in objects:
        assert "Job" not in objects
        objects["Job"] = objects["CronJob"]["spec"]["jobTemplate"]
    spec: dict[str, Any] = objects["Job"]["spec"]
    return spec


@pytest.fixture(scope="module", params=OVERLAYS)
def built(request: pytest.FixtureRequest) -> dict[str, Any]:
    return build(request.param)


@pytest.fixture
def pod(built: dict[str, Any]) -> dict[str, Any]:
    pod: dict[str, Any] = built["template"]["spec"]
    return pod


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


def test_every_overlay_fails_and_ends_as_the_base_says(
    spec: dict[str, Any], built: dict[str, Any]
) -> None:
    for field in (
        "podFailurePolicy",
        "podReplacementPolicy",
        "activeDeadlineSeconds",
        "ttlSecondsAfterFinished",
    ):
        assert built[field] == spec[field], field
    assert built["backoffLimit"] >= spec["backoffLimit"]
    assert built["template"]["spec"]["restartPolicy"] == "Never"  # podFailurePolicy asks for it


def test_a_pod_runs_under_the_uid_of_its_job_and_says_how_it_ended(pod: dict[str, Any]) -> None:
    """Not its own uid, by which a retry would begin anew, nor the Job's name, which comes again."""
    [container] = pod["containers"]
    [run_id] = [entry for entry in container["env"] if entry["name"] == "JOB_RUN_ID"]
    label = run_id["valueFrom"]["fieldRef"]["fieldPath"]
    assert label == "metadata.labels['batch.kubernetes.io/controller-uid']"
    assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"
    assert "terminationMessagePath" not in container  # that of the default, where the job writes


def test_a_pod_has_what_pod_security_does_not_ask_for(pod: dict[str, Any]) -> None:
    """The rest is checked by `make k8s-validate`."""
    [container] = pod["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert pod["automountServiceAccountToken"] is False
    resources = container["resources"]
    for name in ("cpu", "memory", "ephemeral-storage"):
        assert name in resources["requests"]
        assert name in resources["limits"]
    [tmp] = [volume["emptyDir"] for volume in pod["volumes"] if "emptyDir" in volume]
    assert tmp["sizeLimit"].endswith("Mi")
    assert resources["limits"]["ephemeral-storage"].endswith("Gi")  # /tmp counts towards it


def test_the_ranks_of_the_distributed_overlay_fit_together() -> None:
    spec = build("distributed")
    pod = spec["template"]["spec"]
    arguments = pod["containers"][0]["args"]
    options = dict(a.removeprefix("--").split("=") for a in arguments if a.startswith("--"))
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] == int(options["nnodes"])
    assert options["node-rank"] == "$(JOB_COMPLETION_INDEX)"
    service = load(KUBERNETES / "overlays" / "distributed" / "service.yaml")
    name = service["metadata"]["name"]
    assert pod["subdomain"] == name
    assert options["master-addr"] == f"job-0.{name}"
    assert service["spec"]["ports"][0]["port"] == int(options["master-port"])
    assert service["spec"]["clusterIP"] == "None"
    # torchrun passes SIGTERM on, and has killed its process before the pod is killed.
    assert 30 < int(options["shutdown-timeout"]) < pod["terminationGracePeriodSeconds"]


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
