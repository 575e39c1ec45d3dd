"""What is in the image and what is not, and how it is started."""

import json
import re
import shutil
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import job
from tests.conftest import ROOT

from .conftest import Image, call, inspect, output_of

COMPILERS = "gcc cc g++ c++ clang ld make cmake nvcc git"


def test_the_user_is_a_number_and_not_root(image: Image) -> None:
    assert re.fullmatch(r"[1-9][0-9]*(:[0-9]+)?", image.config["User"])


def test_no_shell_stands_between_the_engine_and_the_job(image: Image) -> None:
    assert image.config["Entrypoint"] == ["python", "-m", "job"]


def test_train_is_what_runs_by_itself(image: Image) -> None:
    assert image.config["Cmd"] == ["train"]


@pytest.mark.parametrize("key", ["Volumes", "Healthcheck", "ExposedPorts"])
def test_the_image_declares_nothing_that_it_has_not(image: Image, key: str) -> None:
    assert not image.config.get(key)


def test_the_scheduler_and_not_the_image_chooses_the_gpus(image: Image) -> None:
    assert "NVIDIA_VISIBLE_DEVICES" not in image.environment
    assert image.environment["NVIDIA_DRIVER_CAPABILITIES"] == "compute,utility"


def test_onnxruntime_reports_to_nobody(image: Image) -> None:
    assert image.environment["ORT_DISABLE_TELEMETRY"] == "1"


def test_the_image_says_which_revision_it_was_built_from(image: Image) -> None:
    revision = image.config["Labels"]["org.opencontainers.image.revision"]
    assert revision == image.environment["JOB_SOURCE_REVISION"]
    head = call("git", "rev-parse", "HEAD").stdout.strip()  # "" where this is no checkout
    assert revision.startswith(head)


def files(image: Image) -> set[str]:
    """Every file of the image, but for its packages and what the engine mounts."""
    pruned = " -o ".join(f"-path {path}" for path in ("/opt/venv", "/proc", "/sys", "/dev"))
    return set(image.shell(f"find / \\( {pruned} \\) -prune -o ! -type d -print").splitlines())


def test_nothing_is_in_the_image_but_what_belongs(image: Image) -> None:
    base = inspect(image.config["Labels"]["org.opencontainers.image.base.name"])
    own = {path for path in files(image) - files(base) if not path.endswith(".pyc")}
    sources = {f"/app/{path.relative_to(ROOT)}" for path in (ROOT / "job").rglob("*.py")}
    others = {path for path in own - sources if not path.startswith("/app/job/")}
    assert sources <= own
    assert others == {"/job.yaml"}


def test_the_shipped_configuration_is_the_checkouts(image: Image) -> None:
    assert image.shell("cat /job.yaml") == (ROOT / "job.yaml").read_text().strip()


def test_the_packages_are_those_of_the_lock_and_no_more(image: Image) -> None:
    installed = image.shell(
        "python -c 'import importlib.metadata as m;"
        " print(*(d.name for d in m.distributions(path=[\"'$(echo /opt/venv/lib/*/site-packages)"
        "'\"])))'"
    )
    assert {plain(name) for name in installed.split()} == {name for name, _ in locked()}


def test_the_list_of_packages_holds_the_locks_versions(image: Image, tmp_path: Path) -> None:
    checkout = copy_of_the_checkout(tmp_path)
    output_of("make", "sbom", cwd=checkout)
    listed = json.loads((checkout / "sbom.cdx.json").read_text())["components"]
    found = {(plain(entry["name"]), entry["version"].partition("+")[0]) for entry in listed}
    assert found == locked()


def locked() -> set[tuple[str, str]]:
    """Name and version of each package that the lock has for Linux."""
    lines = re.findall(
        r"^\w.*==[^\\\n]*", (ROOT / "requirements/cpu.txt").read_text(), re.MULTILINE
    )
    requirements = [Requirement(line) for line in lines]
    return {
        (plain(each.name), str(each.specifier).removeprefix("=="))
        for each in requirements
        if each.marker is None or each.marker.evaluate()
    }


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_there_is_no_compiler_and_no_git(image: Image) -> None:
    assert image.shell(f"command -v {COMPILERS} || true") == ""


@pytest.mark.parametrize(
    "unused",
    [
        "-type d ( -name test -o -name tests )",
        "-path */torch/bin/* ! -name torch_shm_manager",
        "-type f ( -name *.h -o -name *.hpp -o -name *.cuh )",
        "-type f ( -name *.a -o -name *.pyi )",
        "-type d -name pip",
        "-path */pyarrow/* ( -name *_flight.*so* -o -name *_s3*.so* )",
    ],
)
def test_no_package_brings_what_the_job_never_loads(image: Image, unused: str) -> None:
    quoted = " ".join(f"'{word}'" for word in unused.split())
    find = f"find /opt/venv -name '*.dist-info' -prune -o {quoted} -print"
    said = image.shell(f"find /opt/venv -name libtorch_cpu.so; {find}")  # the first is there
    assert re.fullmatch(r"/opt/venv/\S+/libtorch_cpu\.so", said)


def test_nothing_is_compiled_at_run_time(image: Image) -> None:
    """`python -v` names the source of each module that has no bytecode, else the bytecode."""
    said = image.shell("python -v -c 'import job.pipeline, onnxscript, onnxruntime' 2>&1")
    assert "/app/job/pipeline.py" in said  # it names what it imports
    assert re.findall(r"^# code object from (/\S+\.py)$", said, re.MULTILINE) == []


def test_a_change_of_the_source_installs_nothing_again(image: Image, tmp_path: Path) -> None:
    changed = copy_of_the_checkout(tmp_path)
    with open(changed / "job" / "clock.py", "a") as file:
        file.write("# changed\n")
    other = build(changed, f"{image.tag}-changed")
    try:
        layers, others = image.facts["RootFS"]["Layers"], other.facts["RootFS"]["Layers"]
        assert layers[-2:] != others[-2:]  # the source, and its bytecode
        assert layers[:-2] == others[:-2]
    finally:
        output_of("docker", "image", "rm", other.tag)


def test_every_user_may_run_what_was_built_from_a_private_checkout(
    image: Image, tmp_path: Path
) -> None:
    private = copy_of_the_checkout(tmp_path)
    for path in [private / "job.yaml", *private.glob("job/**/*")]:
        path.chmod(0o700 if path.is_dir() else 0o600)
    other = build(private, f"{image.tag}-private")
    try:
        done = other.run("check")
        assert done.returncode == 0, done.stderr
    finally:
        output_of("docker", "image", "rm", other.tag)


def copy_of_the_checkout(folder: Path) -> Path:
    """What a build needs of it."""
    for name in ("Makefile", "Dockerfile", ".dockerignore", "job.yaml"):
        shutil.copy(ROOT / name, folder)
    for name in ("job", "requirements"):
        shutil.copytree(ROOT / name, folder / name)
    return folder


def build(folder: Path, tag: str) -> Image:
    output_of("make", "image", f"IMAGE={tag}", cwd=folder)
    return inspect(tag)


def test_the_version_is_the_packages(image: Image) -> None:
    done = image.run("--version")
    assert (done.returncode, done.stdout) == (0, f"job {job.__version__}\n")
