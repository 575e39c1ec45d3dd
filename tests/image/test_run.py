"""What `docker run IMAGE` does: training, publishing, verifying, and its exit codes."""

import json
import os
import re
import shutil
import subprocess
import time
from itertools import islice
from pathlib import Path

import pytest

from tests.conftest import manifest_of, run_job

from .conftest import LIMITS, LOCKED_DOWN, SHORT, Image, Training, output_of

# Neither a tmpfs nor a home folder is given: see LOCKED_DOWN.


def test_a_read_only_root_no_network_and_a_gigabyte_are_enough(training: Training) -> None:
    assert training.done.returncode == 0, training.done.stderr


def test_the_last_line_of_stdout_is_the_published_folder(training: Training) -> None:
    assert training.done.stdout.splitlines()[-1].startswith("/artifacts/runs/")
    assert (training.published / "manifest.sha256").is_file()
    assert (training.folder / "latest").resolve() == training.published


def test_stderr_is_json_lines_and_nothing_else(training: Training) -> None:
    events = [json.loads(line) for line in training.done.stderr.splitlines()]
    assert events[-1]["code"] == 0


def test_what_is_published_belongs_to_the_caller(training: Training) -> None:
    paths = [training.folder / "latest", *training.published.rglob("*")]
    assert len(paths) > 10
    assert {path.lstat().st_uid for path in paths} == {training.user}


def test_what_is_published_verifies_in_a_second_container(image: Image, training: Training) -> None:
    done = image.run(
        *("verify", "/artifacts/latest"),
        options=[*LOCKED_DOWN, "--volume", f"{training.folder}:/artifacts:ro"],
        user=training.user,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "/artifacts/latest"


def test_a_flipped_bit_is_refused_in_a_second_container(
    image: Image, trainings: list[Training], folder: Path
) -> None:
    """The verification above could fail."""
    copy = shutil.copytree(trainings[0].published, folder / "copy")
    model = bytearray((copy / "model.onnx").read_bytes())
    model[len(model) // 2] ^= 1
    (copy / "model.onnx").write_bytes(model)
    done = image.run("verify", "/artifacts/copy", folder=folder)
    assert done.returncode == 65
    assert "model.onnx is not the file that was published" in done.stderr


def test_another_user_may_read_what_is_published(training: Training) -> None:
    private = [
        path.name for path in training.published.rglob("*") if not path.stat().st_mode & 0o004
    ]
    assert private == []


def test_two_users_publish_the_same_bytes(trainings: list[Training]) -> None:
    first, second = (
        {name: file["sha256"] for name, file in training.manifest["files"].items()}
        for training in trainings
    )
    models = {name for name in first if name.startswith("model.")}
    assert "model.onnx" in models
    assert {name: first[name] for name in models} == {name: second[name] for name in models}


def test_the_manifest_names_the_images_revision(image: Image, training: Training) -> None:
    revision = image.config["Labels"]["org.opencontainers.image.revision"]
    assert training.manifest["source"]["revision"] == (revision or None)


def test_a_mounted_job_yaml_is_the_configuration(
    image: Image, folder: Path, tmp_path: Path
) -> None:
    mounted = tmp_path / "job.yaml"
    mounted.write_text("data: {samples: 3000}\ntrain: {epochs: 1}\noutput: {dir: elsewhere}\n")
    options = [*LOCKED_DOWN, "--volume", f"{mounted}:/job.yaml:ro"]
    done = image.run(options=options, folder=folder)
    assert done.returncode == 0, done.stderr
    published = folder / Path(done.stdout.splitlines()[-1]).relative_to("/artifacts")
    assert manifest_of(published)["data"]["rows"] == 3000


def test_the_command_line_comes_before_the_images_own_settings(image: Image, folder: Path) -> None:
    done = image.run("check", "output.dir=/artifacts/inner")
    assert "/artifacts/inner" in done.stdout, done.stderr


def code_and_reason(image: Image, *arguments: str, **how: object) -> tuple[int, str]:
    """The exit code, which stderr's last line must agree with, and the reason given there."""
    done = image.run(*arguments, **how)  # type: ignore[arg-type]
    assert done.stdout == ""
    last = json.loads(done.stderr.splitlines()[-1])
    assert last["code"] == done.returncode
    return done.returncode, last["message"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["frobnicate"], 64, "frobnicate"),
        (["--config", "/nowhere.yaml"], 66, "/nowhere.yaml"),
        (["verify", "/artifacts/latest"], 66, "/artifacts/latest"),
        (["train", "device=cuda"], 69, "cuda"),
        (["train.epoch=1"], 78, "epochs"),
        (["train", "train.epoch=1"], 78, "epochs"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else None,
)
def test_the_containers_exit_code_is_the_jobs(
    image: Image, arguments: list[str], code: int, said: str
) -> None:
    ended, reason = code_and_reason(image, *arguments)
    assert ended == code, reason
    assert said in reason


@pytest.mark.parametrize(
    ("options", "user"),
    [(LOCKED_DOWN, None), ((), None), ((), 0)],
    ids=["locked-down", "writable-root", "as-root"],
)
def test_nothing_mounted_is_an_output_that_cannot_be_created(
    image: Image, options: tuple[str, ...], user: int | None
) -> None:
    """A model published inside a container is gone with the container."""
    ended, reason = code_and_reason(image, *SHORT, options=options, user=user)
    assert ended == 73, reason
    assert "-v " in reason
    assert ":/artifacts" in reason


def test_a_folder_of_somebody_else_is_no_permission(image: Image, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o755)
    ended, reason = code_and_reason(image, *SHORT, folder=closed, user=54321)
    assert ended == 77, reason


def test_a_mount_that_is_read_only_cannot_be_written(image: Image, folder: Path) -> None:
    options = [*LOCKED_DOWN, "--volume", f"{folder}:/artifacts:ro"]
    ended, reason = code_and_reason(image, *SHORT, options=options)
    assert ended == 73, reason
    assert "Read-only file system" in reason


def findings(
    image: Image, folder: Path, *arguments: str, options: tuple[str, ...]
) -> dict[str, str]:
    """What doctor says of each thing."""
    done = image.run("doctor", *arguments, options=[*LOCKED_DOWN, *options], folder=folder)
    assert done.returncode == 0, done.stderr
    return {
        what: said.strip()
        for what, said in (line.split(":", 1) for line in done.stdout.splitlines())
    }


@pytest.mark.parametrize(
    ("cpus", "threads"), [("0.5", "1 CPU thread "), ("1", "1 CPU thread "), ("2", "2 CPU threads ")]
)
def test_threads_follow_the_containers_cpus(
    image: Image, folder: Path, cpus: str, threads: str
) -> None:
    if float(cpus) > (os.cpu_count() or 1):
        pytest.skip(f"--cpus {cpus} needs as many processors")
    found = findings(image, folder, "model.hidden=[512]", options=("--cpus", cpus))
    assert found["cpu limit"].startswith(f"{cpus} of ")
    assert f"{threads}(the CPU limit is {cpus})" in found["device"]


def test_doctor_says_what_the_container_was_given(image: Image, folder: Path) -> None:
    options = (*LIMITS, "--shm-size", "128m", "--tmpfs", "/tmp")
    found = findings(image, folder, options=options)
    assert found["memory limit"] == "1.0 GiB"
    assert found["user"] == "uid 10001, gid 10001"
    assert found["shared memory"] == "/dev/shm, 0.1 GiB free"
    assert found["writable"] == "/tmp, /dev/shm"
    assert found["output"].startswith("/artifacts is writable")
    assert re.search(r"cgroup v[12]$", found["cpu limit"])


def test_kubernetes_is_told_the_reason(image: Image, tmp_path: Path) -> None:
    message = tmp_path / "termination-log"
    message.touch()
    message.chmod(0o666)
    options = [*LOCKED_DOWN, "--volume", f"{message}:/dev/termination-log"]
    assert image.run("train.epoch=1", options=options).returncode == 78
    assert json.loads(message.read_text())["code"] == 78


# Epochs enough to be cut off in the middle of, each with a checkpoint.
LONG = ("data.samples=20000", "train.epochs=200", "train.batch_size=512", "threads=1")


@pytest.fixture(scope="module")
def of_the_host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the same job, not cut off and in no container, publishes."""
    folder = tmp_path_factory.mktemp("host") / "artifacts"
    done = run_job("train", *LONG, "device=cpu", "--output", str(folder))
    assert done.returncode == 0, done.stderr
    return folder / "latest"


@pytest.mark.parametrize(("how", "code"), [("stop --time 60", "75"), ("kill", "137")])
def test_a_second_container_goes_on_and_ends_with_the_hosts_bytes(
    image: Image, folder: Path, of_the_host: Path, how: str, code: str
) -> None:
    """As process 1 a program without a handler of its own would not hear of SIGTERM."""
    command = ("train", *LONG, "device=cpu")
    options = [*LOCKED_DOWN, "--detach", "--volume", f"{folder}:/artifacts"]
    name = output_of("docker", "run", *options, image.tag, *command)
    try:
        logs = subprocess.Popen(
            ["docker", "logs", "--follow", name],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert logs.stderr is not None
        with logs, logs.stderr as said:
            # The first epoch's state is saved before the second one is said.
            epochs = (line for line in said if '"event": "epoch"' in line)
            assert len([*islice(epochs, 2)]) == 2
            output_of("docker", *how.split(), name)
            rest = said.read()
        assert output_of("docker", "wait", name) == code
    finally:
        output_of("docker", "rm", "--force", name)
    assert ("INTERRUPTED (75)" in rest) == (code == "75")
    assert not list((folder / "runs").iterdir())

    done = image.run(*command, folder=folder)
    assert done.returncode == 0, done.stderr
    ours, theirs = (manifest_of(published) for published in (folder / "latest", of_the_host))
    assert ours["training"]["resumed"] == 1
    # The fingerprint, in model.onnx, differs where the host's Python has another patch level.
    old, new = theirs["fingerprint"].encode(), ours["fingerprint"].encode()
    names = [name for name in theirs["files"] if name.startswith(("model.", "golden/"))]
    assert len(names) == 6
    for name in [*names, "metrics.jsonl"]:
        host, container = (path / name for path in (of_the_host, folder / "latest"))
        assert container.read_bytes() == host.read_bytes().replace(old, new), name


def test_a_second_signal_ends_process_1_at_once(image: Image) -> None:
    """The job's own handlers, while a call is under way that no first signal ends."""
    held = (
        "import time; from job import interrupt; from job.cli import last_words;"
        "interrupt.install(last_words); print('held', flush=True); time.sleep(600)"
    )
    options = [*LOCKED_DOWN, "--detach", "--entrypoint", "python"]
    name = output_of("docker", "run", *options, image.tag, "-c", held)
    try:
        logs = subprocess.Popen(
            ["docker", "logs", "--follow", name], stdout=subprocess.PIPE, text=True
        )
        assert logs.stdout is not None
        with logs, logs.stdout as said:
            assert said.readline() == "held\n"
            for _ in range(2):
                assert output_of("docker", "inspect", "-f", "{{.State.Running}}", name) == "true"
                output_of("docker", "kill", "--signal", "TERM", name)
                time.sleep(1)
        assert output_of("docker", "wait", name) == "143"
    finally:
        output_of("docker", "rm", "--force", name)
