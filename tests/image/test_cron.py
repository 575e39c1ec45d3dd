"""deploy/cron/crontab, run by cron's own program in a container."""

import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import job
from tests.conftest import ROOT

from .conftest import SHORT, Image, call, empty, make_open_folder, output_of

# cron and the docker client beside the job; what would send mail keeps it. The environment is as
# ready as `make setup` would leave it; said when the container starts, since a layer from the
# builder's cache may be older than the checkout's locks, and make would then install.
DOCKERFILE = """
FROM {image}
USER 0
RUN apt-get -qq update && apt-get -qq install --yes --no-install-recommends cron make busybox
RUN mkdir /mail && printf '#!/bin/sh\\nexec cat > /mail/$$\\n' > /usr/sbin/sendmail \\
    && chmod +x /usr/sbin/sendmail
ENTRYPOINT ["sh", "-c", "touch /opt/venv/.ready && busybox syslogd -O /log \\
    && crontab /crontab && exec cron -f -L 6"]
"""


@dataclass(frozen=True)
class Tick:
    """What one tick of the two lines, and of the two with a mistake in them, left."""

    docker: Path  # the folders with artifacts/
    make: Path
    mails: list[str]
    log: str


def lines(docker: Path, make: Path, tag: str, *overrides: str) -> str:
    """The shipped crontab for once, when cron starts, with other folders, image and overrides."""
    text = (ROOT / "deploy" / "cron" / "crontab").read_text()
    for shipped, here in (
        ("0 2 * * * ", "@reboot "),
        ("/srv/job/artifacts:", f"{docker}/artifacts:"),
        ("--directory /srv/job ", f"--directory {make} "),
        (f"job:{job.__version__}-cpu", tag),
        ("seed=run", " ".join(["seed=run", *overrides])),
    ):
        assert shipped in text
        text = text.replace(shipped, here)
    return text


@pytest.fixture(scope="module")
def tick(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tick]:
    folder = tmp_path_factory.mktemp("cron")
    docker, make = folder / "docker", folder / "make"
    docker.mkdir()
    artifacts = make_open_folder(docker / "artifacts")
    for name in ("job", "requirements"):
        shutil.copytree(ROOT / name, make / name)
    for name in ("job.yaml", "Makefile"):
        shutil.copy(ROOT / name, make)
    (make / ".venv").symlink_to("/opt/venv")
    right = lines(docker, make, image.tag, *SHORT)
    wrong = lines(docker, make, image.tag, "train.epoch=1")
    (folder / "crontab").write_text(f"{right}\n{wrong}")

    tag = f"{image.tag}-cron"
    subprocess.run(
        ["docker", "build", "--quiet", "--tag", tag, "-"],
        input=DOCKERFILE.format(image=image.tag),
        text=True,
        check=True,
    )
    container = output_of(
        *("docker", "run", "--detach", "--network", "none"),
        *("--volume", f"{folder}:{folder}", "--volume", f"{folder / 'crontab'}:/crontab:ro"),
        *("--volume", "/var/run/docker.sock:/var/run/docker.sock"),
        *("--volume", f"{shutil.which('docker')}:/usr/bin/docker:ro"),
        tag,
    )

    def inside(command: str) -> str:
        return call("docker", "exec", container, "sh", "-c", command).stdout

    def over() -> bool:
        """Have both good lines ended, mail and all, and both bad ones failed?"""
        log = inside("cat /log").splitlines()
        ended = [line for line in log if " END " in line and SHORT[0] in line]
        failed = [line for line in log if "failed with exit status" in line]
        return len(ended) >= 2 and len(failed) >= 2

    try:
        end = time.monotonic() + 300
        while not over() and time.monotonic() < end:
            time.sleep(1)
        mails = inside("for mail in /mail/*; do cat $mail; printf '\\0'; done").split("\0")[:-1]
        yield Tick(docker, make, mails, inside("cat /log"))
    finally:
        output_of("docker", "rm", "--force", container)
        empty(image, artifacts)
        empty(image, make)


def test_both_lines_publish(tick: Tick) -> None:
    for folder in (tick.docker, tick.make):
        assert (folder / "artifacts" / "latest" / "manifest.sha256").is_file(), tick.log


def test_success_mails_nothing_and_failure_its_reason(tick: Tick) -> None:
    assert len(tick.mails) == 2
    for mail in tick.mails:
        assert "train.epoch=1" in mail
        assert re.search(r"CONFIG \(78\): .*epochs", mail), mail


def test_crons_log_has_the_exit_code_of_docker_and_makes_2(tick: Tick) -> None:
    assert set(re.findall(r"failed with exit status (\d+)", tick.log)) == {"78", "2"}, tick.log
