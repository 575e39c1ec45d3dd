"""The manifests on a real Kubernetes: `make k8s-smoke`, which prints what docs/schedulers.md shows.

The server is 1.20, so kube-downgrade takes away what came later, podFailurePolicy first of all, and
the label of the Job's uid has its older name. One volume, so that the tests run in their order.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import yaml

from tests.conftest import ROOT

from .conftest import Image, call, output_of

pytestmark = pytest.mark.slow

Object = dict[str, Any]
Found = TypeVar("Found")
OVERLAYS = ROOT / "deploy" / "kubernetes" / "overlays"
MINUTES = 60.0


def kubectl(*arguments: str, show: bool = False) -> str:
    said = output_of("kubectl", *arguments)
    if show:
        print(f"\n$ kubectl {' '.join(arguments)}\n{said}")
    return said


def get(*arguments: str) -> Any:
    return json.loads(kubectl("get", "--output", "json", *arguments))


def until(what: str, look: Callable[[], Found | None], limit: float = 10 * MINUTES) -> Found:
    """The first thing that `look` finds, looking twice a second."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        found = look()
        if found:
            return found
        time.sleep(0.5)
    state = call("kubectl", "describe", "jobs,cronjobs,pods").stdout
    pytest.fail(f"no {what} in {limit:.0f} s\n{state[-8000:]}")


@pytest.fixture(scope="module")
def cluster(image: Image) -> Iterator[Image]:
    """The image to run, on a cluster with no Job in it."""
    if "KUBECONFIG" not in os.environ or "KUBE" not in os.environ:
        pytest.fail("no cluster: `make k8s-smoke` starts one")
    clear()
    yield image
    clear()


def clear() -> None:
    kubectl("delete", "cronjobs,jobs,pods", "--all", "--wait")


def template(manifest: Object) -> Object:
    spec: Object = manifest["spec"]
    while "template" not in spec:
        spec = spec["jobTemplate"]["spec"]
    pod: Object = spec["template"]["spec"]
    return pod


def apply(image: Image, overlay: str, edit: Callable[[Object], None]) -> None:
    """An overlay as it is shipped, but for what `edit` does to each of its objects."""
    objects = list(yaml.safe_load_all(kubectl("kustomize", str(OVERLAYS / overlay))))
    for each in objects:
        if each["kind"] in ("Job", "CronJob"):
            [container] = template(each)["containers"]
            container["image"] = image.tag
            [run_id] = [one for one in container["env"] if one["name"] == "JOB_RUN_ID"]
            run_id["valueFrom"]["fieldRef"]["fieldPath"] = "metadata.labels['controller-uid']"
        edit(each)
    given = subprocess.run(
        [sys.executable, f"{os.environ['KUBE']}/kube-downgrade"],
        input=yaml.safe_dump_all(objects),
        capture_output=True,
        text=True,
        check=True,
    )
    print("\n" + given.stderr.strip())
    subprocess.run(
        ["kubectl", "apply", "--filename", "-"], input=given.stdout, text=True, check=True
    )


def with_epochs(epochs: int) -> Callable[[Object], None]:
    def edit(each: Object) -> None:
        if each["kind"] == "ConfigMap":
            shipped = each["data"]["job.yaml"]
            each["data"]["job.yaml"] = shipped.replace("  epochs: 5\n", f"  epochs: {epochs}\n")
            assert each["data"]["job.yaml"] != shipped

    return edit


def pods() -> list[Object]:
    """All pods of Jobs, the oldest first."""
    found: list[Object] = get("pods")["items"]
    return sorted(found, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))


def events(pod: str) -> list[Object]:
    """The events in the log of a pod so far."""
    lines = call("kubectl", "logs", pod).stdout.splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def ended(pod: Object) -> Object | None:
    """The terminated state of a pod's one container."""
    statuses = pod["status"].get("containerStatuses") or [{"state": {}}]
    state: Object | None = statuses[0]["state"].get("terminated")
    return state


def complete(name: str) -> Object:
    """The Job once it has succeeded."""
    return until(f"success of {name}", lambda: succeeded(get("job", name)))


def succeeded(job: Object) -> Object | None:
    return job if job["status"].get("succeeded") else None


def uid(thing: Object) -> str:
    return str(thing["metadata"]["uid"])


def name(thing: Object) -> str:
    return str(thing["metadata"]["name"])


def run_of(job: Object) -> Path:
    """The published folder that has the Job's uid for its name, on the volume."""
    volume = get("pvc", "job-artifacts")["spec"]["volumeName"]
    return Path(get("pv", volume)["spec"]["local"]["path"]) / "runs" / uid(job)


def manifest_of(job: Object) -> Object:
    facts: Object = json.loads((run_of(job) / "manifest.json").read_text())
    return facts


def models(facts: Object) -> Object:
    files = facts["files"]
    return {name: files[name]["sha256"] for name in files if name.startswith("model.")}


@pytest.fixture(scope="module")
def undisturbed(cluster: Image) -> Object:
    """manifest.json of a Job from the cpu overlay, twenty epochs long."""
    apply(cluster, "cpu", with_epochs(20))
    job = complete("job")
    kubectl("get", "job,pod", show=True)
    kubectl("logs", "--tail", "3", "job/job", show=True)
    facts = manifest_of(job)
    assert facts["run_id"] == uid(job)
    return facts


def test_a_job_publishes_what_verifies_in_another_pod(cluster: Image, undisturbed: Object) -> None:
    assert undisturbed["training"]["resumed"] == 0

    def edit(each: Object) -> None:
        if each["kind"] == "Job":
            each["metadata"]["name"] = "verify"
            template(each)["containers"][0]["args"] = ["verify", "/artifacts/latest"]

    apply(cluster, "cpu", edit)
    complete("verify")
    kubectl("logs", "--tail", "2", "job/verify", show=True)
    clear()


def test_after_a_deleted_pod_the_next_resumes_to_the_same_bytes(
    cluster: Image, undisturbed: Object
) -> None:
    apply(cluster, "cpu", with_epochs(20))
    first = name(until("pod", pods)[0])
    until("running pod", lambda: get("pod", first)["status"]["phase"] == "Running")
    # Followed from here on: the log is gone with its pod.
    command = ["kubectl", "logs", "--follow", first]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as log:
        assert log.stdout is not None
        next(line for line in log.stdout if '"event": "epoch"' in line)
        kubectl("delete", "pod", first, "--wait=false", show=True)
        last = [line for line in log.stdout if line.startswith("{")][-1]
    print(last)
    assert json.loads(last)["code"] == 75
    job = complete("job")
    kubectl("get", "job,pod", show=True)
    print("\n" + "\n".join(line for line in kubectl("logs", "job/job").splitlines()[:2]))
    facts = manifest_of(job)
    assert facts["training"]["resumed"] == 1
    assert facts["run_id"] != undisturbed["run_id"]
    assert models(facts) == models(undisturbed)
    clear()


def test_a_bad_configuration_is_told_by_the_pods_status(cluster: Image) -> None:
    def edit(each: Object) -> None:
        if each["kind"] == "ConfigMap":
            each["data"]["job.yaml"] = "seed: 0\ntrain: {epoch: 5}\n"

    apply(cluster, "cpu", edit)
    pod = until("failed pod", lambda: next((pod for pod in pods() if ended(pod)), None))
    state = ended(pod)
    assert state is not None
    assert state["exitCode"] == 78
    message = json.loads(state["message"])
    print(f"\n{json.dumps(message)}")
    assert message["name"] == "CONFIG"
    assert "epochs" in message["reason"]
    clear()


def test_a_tick_is_left_out_while_a_run_goes_on_and_a_later_one_is_new(cluster: Image) -> None:
    longer = with_epochs(250)  # than the minute between two ticks

    def edit(each: Object) -> None:
        longer(each)
        if each["kind"] == "CronJob":
            each["spec"]["schedule"] = "* * * * *"

    apply(cluster, "cronjob", edit)
    first = until("first tick", lambda: get("jobs")["items"])[0]
    until("tick left out", lambda: "JobAlreadyActive" in kubectl("get", "events"))
    assert [uid(job) for job in get("jobs")["items"]] == [uid(first)]
    complete(name(first))
    jobs = until(
        "second run", lambda: [job for job in get("jobs")["items"] if uid(job) != uid(first)]
    )
    kubectl("get", "cronjob,job", show=True)
    kubectl(
        *("get", "events", "--field-selector", "involvedObject.kind=CronJob"),
        *("--output", "custom-columns=REASON:.reason,MESSAGE:.message"),
        show=True,
    )
    start = until("start of it", lambda: events(f"job/{name(jobs[0])}"))[0]
    assert start["run_id"] == uid(jobs[0])
    assert start["seed"] != yaml.safe_load((run_of(first) / "job.yaml").read_text())["seed"]
