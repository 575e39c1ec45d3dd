"""Publishing: whole or not at all, `latest` never backwards, nothing of others touched."""

import errno
import fcntl
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from job import publish as publishing
from job.errors import (
    ConfigError,
    DataError,
    JobError,
    NoPermission,
    OutputError,
    QualityUnmet,
    ReadWriteError,
)
from job.manifest import Identity, read_manifest, sha256_of
from job.publish import Run, leave_evidence, prepare_output, publish, sweep, unfinished

F = "f" * 64


def claim(
    output: Path, run_id: str | None, fingerprint: str, new_id: str
) -> AbstractContextManager[Run]:
    """Of runs whose fingerprint does not depend on their ids."""
    return publishing.claim(output, run_id, lambda _: Identity(fingerprint, fingerprint, 1), new_id)


NOW = datetime(2026, 1, 1, tzinfo=UTC)


def publish_one(output: Path, run_id: str, *, age: int = 0, keep: int = 5) -> Run:
    """Publishes a folder with one file, made `age` days before the others."""
    prepare_output(output)
    with claim(output, run_id, F, "new") as run:
        (run.staging / "model.onnx").write_text(run_id)
        created = (NOW - timedelta(days=age)).isoformat()
        fields = {"contract": 1, "run_id": run_id, "fingerprint": "f" * 64, "created": created}
        publish(run, fields, {"model.onnx": sha256_of(run.staging / "model.onnx")}, keep)
    return run


def test_a_published_run_is_whole_and_latest_points_at_it(tmp_path: Path) -> None:
    run = publish_one(tmp_path, "one")
    assert os.readlink(tmp_path / "latest") == "runs/one"
    assert read_manifest(tmp_path / "latest")["run_id"] == "one"
    assert not list((tmp_path / "work" / "runs").iterdir())
    assert not list((tmp_path / "work" / "locks").iterdir())
    subprocess.run(["sha256sum", "-c", "manifest.sha256"], cwd=run.published, check=True)


def test_latest_never_goes_back_to_an_older_run(tmp_path: Path) -> None:
    publish_one(tmp_path, "new")
    publish_one(tmp_path, "old", age=3)
    assert os.readlink(tmp_path / "latest") == "runs/new"
    publish_one(tmp_path, "newer", age=-1)
    assert os.readlink(tmp_path / "latest") == "runs/newer"


def test_a_lost_latest_is_repaired_by_running_again(tmp_path: Path) -> None:
    publish_one(tmp_path, "one")
    (tmp_path / "latest").unlink()
    with claim(tmp_path, "one", F, "new") as run:
        assert run.published.exists()
    assert os.readlink(tmp_path / "latest") == "runs/one"


def test_an_id_that_is_published_with_another_fingerprint_is_refused(tmp_path: Path) -> None:
    publish_one(tmp_path, "one")
    with (
        pytest.raises(ConfigError, match="published already"),
        claim(tmp_path, "one", "e" * 64, "new"),
    ):
        pass


def test_a_published_run_that_is_corrupt_is_not_called_published(tmp_path: Path) -> None:
    run = publish_one(tmp_path, "one")
    (run.published / "model.onnx").write_text("other")
    with pytest.raises(DataError, match=r"model\.onnx is not"), claim(tmp_path, "one", F, "new"):
        pass


def test_a_published_run_without_its_manifest_is_corrupt(tmp_path: Path) -> None:
    run = publish_one(tmp_path, "one")
    for name in ("manifest.json", "manifest.sha256"):
        (run.published / name).unlink()
    with pytest.raises(DataError, match=r"holds no manifest"), claim(tmp_path, "one", F, "new"):
        pass


def test_a_file_that_changes_after_its_verification_is_not_published(tmp_path: Path) -> None:
    prepare_output(tmp_path)
    with claim(tmp_path, "one", F, "new") as run, pytest.raises(JobError, match="changed between"):
        (run.staging / "model.onnx").write_text("verified")
        digest = sha256_of(run.staging / "model.onnx")
        (run.staging / "model.onnx").write_text("changed")
        publish(run, {"contract": 1}, {"model.onnx": digest}, 5)
    assert not list((tmp_path / "runs").iterdir())
    assert not (tmp_path / "latest").is_symlink()


def test_a_run_that_fails_leaves_nothing_visible(tmp_path: Path) -> None:
    prepare_output(tmp_path)
    with pytest.raises(ValueError, match="by the way"), claim(tmp_path, "one", F, "new") as run:
        (run.staging / "model.onnx").write_text("half")
        raise ValueError("by the way")
    assert not list((tmp_path / "runs").iterdir())
    assert not list(run.work.glob("attempt-*"))


def test_a_run_that_was_judged_is_over(tmp_path: Path) -> None:
    prepare_output(tmp_path)
    with pytest.raises(QualityUnmet), claim(tmp_path, "one", F, "new"):
        raise QualityUnmet("too bad")
    assert not list((tmp_path / "work" / "runs").iterdir())


def cut_off(output: Path, run_id: str | None, fingerprint: str, new_id: str) -> Run:
    """A run that ends with an error after its first checkpoint."""
    prepare_output(output)
    with pytest.raises(OSError, match="cut"), claim(output, run_id, fingerprint, new_id) as run:
        run.checkpoints.mkdir(exist_ok=True)
        raise OSError("cut")
    return run


def test_an_unfinished_run_is_continued_under_its_id(tmp_path: Path) -> None:
    assert [cut_off(tmp_path, "one", F, "new").resumed for _ in range(3)] == [0, 1, 2]
    with claim(tmp_path, "one", F, "new") as run:
        assert run.resumed == 3
        assert run.checkpoints.is_dir()
        assert not list(run.staging.iterdir())


def test_an_unfinished_run_with_another_fingerprint_is_kept_and_refused(tmp_path: Path) -> None:
    run = cut_off(tmp_path, "one", F, "new")
    with (
        pytest.raises(ConfigError, match="begun with another configuration"),
        claim(tmp_path, "one", "e" * 64, "new"),
    ):
        pass
    assert run.checkpoints.is_dir()


def test_without_an_id_the_newest_unfinished_run_of_the_same_fingerprint_is_adopted(
    tmp_path: Path,
) -> None:
    for age, (name, fingerprint) in enumerate([("newer", F), ("older", F), ("other", "e" * 64)]):
        state = cut_off(tmp_path, name, fingerprint, "").work / publishing.STATE
        os.utime(state, (1000 - age, 1000 - age))
    with claim(tmp_path, None, F, "new") as run:
        assert (run.id, run.resumed) == ("newer", 1)
        # That one is held now.
        with claim(tmp_path, None, F, "new") as second:
            assert second.id == "older"
            with claim(tmp_path, None, F, "new") as third:
                assert (third.id, third.resumed) == ("new", 0)


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"fingerprint": 1, "attempts": 1}'])
def test_an_unfinished_run_of_which_nothing_is_known_starts_anew(
    content: str, tmp_path: Path
) -> None:
    run = cut_off(tmp_path, "one", F, "new")
    (run.work / publishing.STATE).write_text(content)
    assert cut_off(tmp_path, None, F, "new").id == "new"
    with claim(tmp_path, "one", F, "new") as again:
        assert again.resumed == 0
        assert not again.checkpoints.exists()


def test_an_unfinished_run_goes_when_keep_runs_were_published_after_it(tmp_path: Path) -> None:
    for number in range(3):
        cut_off(tmp_path, f"run{number}", F, "")
    long_ago = (NOW - timedelta(days=3)).timestamp()
    os.utime(tmp_path / "work" / "runs" / "run1" / publishing.STATE, (long_ago, long_ago))
    publish_one(tmp_path, "first", age=2, keep=2)
    assert len(unfinished(tmp_path)) == 3
    publish_one(tmp_path, "second", age=1, keep=2)
    assert {folder.name for folder in unfinished(tmp_path)} == {"run0", "run2"}
    assert not list((tmp_path / "work" / "locks").iterdir())


def test_a_run_that_is_cut_off_again_and_again_does_not_drive_out_others(tmp_path: Path) -> None:
    for name in ("first", *(f"other{n}" for n in range(9))):
        cut_off(tmp_path, name, F, "")
        sweep(tmp_path)
    with claim(tmp_path, "first", F, "") as run:
        assert (run.resumed, run.checkpoints.exists()) == (1, True)


def test_old_runs_go_and_only_old_runs(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "manifest.json").write_text(json.dumps({"contract": 1, "created": "2000-01-01"}))
    output = tmp_path / "out"
    publish_one(output, "first", age=9)
    (output / "runs" / "not-ours").mkdir()
    (output / "runs" / "a-link").symlink_to(elsewhere)
    publish_one(output, "second", age=8)
    publish_one(output, "third", age=7, keep=2)
    names = {path.name for path in (output / "runs").iterdir()}
    assert names == {"second", "third", "not-ours", "a-link"}
    assert (elsewhere / "manifest.json").exists()


def test_retention_spares_what_latest_points_at_and_the_run_itself(tmp_path: Path) -> None:
    publish_one(tmp_path, "new")
    publish_one(tmp_path, "old", age=5, keep=1)
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"new", "old"}


def test_evidence_holds_no_model_and_only_the_last_stay(tmp_path: Path) -> None:
    prepare_output(tmp_path)
    for number in range(4):
        with claim(tmp_path, f"run{number}", F, "new") as run:
            (run.staging / "model.onnx").write_text("wrong")
            (run.staging / "report.html").write_text("why")
            leave_evidence(run, 2)
            os.utime(run.failed, (number, number))
    assert {path.name for path in (tmp_path / "failed").iterdir()} == {"run2", "run3"}
    assert [path.name for path in (tmp_path / "failed" / "run3").iterdir()] == ["report.html"]


HOLDER = """
import sys, time
from pathlib import Path
from job.manifest import Identity
from job.publish import claim, prepare_output
output = Path(sys.argv[1])
prepare_output(output)
with claim(output, "one", lambda _: Identity("f" * 64, "", 1), "new") as run:
    (run.staging / "model.onnx").write_text("half")
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the run id `one`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_an_id_that_another_process_holds_too_long_is_given_up(
    tmp_path: Path, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "WAIT_SECONDS", 0.5)
    with pytest.raises(ReadWriteError, match="run again later"), claim(tmp_path, "one", F, "new"):
        pass
    assert holder.poll() is None


def test_the_second_goes_on_once_the_first_is_gone(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    threading.Timer(0.5, holder.kill).start()
    with claim(tmp_path, "one", F, "new") as run:
        assert holder.wait() != 0
        assert not list(run.staging.iterdir())  # the other's half is gone


def test_a_lock_whose_file_was_removed_meanwhile_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening and locking, its last holder may take the file away."""
    path, real = tmp_path / "lock", fcntl.flock

    def removed_meanwhile(descriptor: int, operation: int) -> None:
        path.unlink()
        path.touch()
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", removed_meanwhile)
    assert publishing._try_lock(path) is None
    monkeypatch.setattr(fcntl, "flock", real)
    held = publishing._try_lock(path)
    assert held is not None
    assert publishing._try_lock(path) is None
    publishing._unlock(path, held)


def test_leftovers_of_killed_runs_are_swept_and_those_of_living_ones_are_not(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    def half() -> list[Path]:
        return list(tmp_path.rglob("model.onnx"))

    nameless = tmp_path / "work" / "runs" / "nameless"
    nameless.mkdir()
    (state,) = tmp_path.rglob(publishing.STATE)
    state.unlink()  # nothing could be resumed, were it not held
    sweep(tmp_path)
    assert half()
    assert not nameless.exists()
    holder.kill()
    holder.wait()
    sweep(tmp_path)
    assert not half()


def test_a_reader_never_sees_a_partial_run(tmp_path: Path) -> None:
    seen: list[str] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            if (tmp_path / "latest").exists():
                seen.append(read_manifest((tmp_path / "latest").resolve())["run_id"])
            time.sleep(0.001)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(100):
        publish_one(tmp_path, f"run{number:02d}", age=-number, keep=1000)
    stop.set()
    reader.join()
    assert len(set(seen)) > 5
    assert seen == sorted(seen)


def test_a_latest_that_is_no_link_is_refused(tmp_path: Path) -> None:
    """As `cp -rL` makes one: the run would be published, and its end would be an error."""
    (tmp_path / "latest").mkdir()
    with pytest.raises(OutputError, match=r"latest is no link.*move it away"):
        prepare_output(tmp_path)


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EOPNOTSUPP, OutputError),
        (errno.EROFS, OutputError),
        (errno.EPERM, NoPermission),
        (errno.ENOSPC, ReadWriteError),
        (errno.EIO, ReadWriteError),
    ],
)
@pytest.mark.parametrize(
    ("what", "named"),
    [
        ("os.symlink", "make a symbolic link"),
        ("os.replace", "rename over a link"),
        ("fcntl.flock", "lock a file"),
        ("job.publish.fsync", "fsync a folder"),
    ],
)
def test_what_the_file_system_lacks_is_named(
    what: str,
    named: str,
    number: int,
    kind: type[JobError],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: object) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr(what, fails)
    with pytest.raises(kind, match=f"to {named} there failed") as caught:
        prepare_output(tmp_path)
    assert type(caught.value) is kind
    assert not list((tmp_path / "work").glob(".probe-*"))


def test_all_is_on_the_disk_before_the_rename_that_shows_it(
    tmp_path: Path, on_disk: list[str]
) -> None:
    """A power cut then leaves the whole run or none; each name as it is at its call."""
    publish_one(tmp_path, "one")
    seen = on_disk.index("staging -> one")
    files = {path.name for path in (tmp_path / "runs" / "one").iterdir()}
    assert files == {"model.onnx", "manifest.json", "manifest.sha256"}
    assert {*files, "staging"} <= set(on_disk[:seen])
    assert on_disk[seen + 1] == "runs"


def test_an_output_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be used: to make a folder there failed"):
        prepare_output(tmp_path / "file")


REFUSED = """
import os, sys
from pathlib import Path
from job.errors import JobError
from job.publish import prepare_output
if os.geteuid() == 0:
    os.setuid(54321)  # root may write everywhere
try:
    prepare_output(Path(sys.argv[1]))
except JobError as error:
    print(int(error.code), error)
"""


def test_a_folder_that_may_not_be_written_is_refused() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        done = subprocess.run(
            [sys.executable, "-c", REFUSED, folder], capture_output=True, text=True, check=True
        )
    assert done.stdout.startswith(
        f"{NoPermission.code:d} the output folder {folder} cannot be used"
    )
