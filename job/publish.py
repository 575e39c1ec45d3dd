"""Publishing as a transaction: a reader of the output folder sees the old model or the new, whole.

runs/<run-id>/    verified runs, each complete from the moment it can be seen
latest            -> runs/<run-id>, replaced atomically, never by an older run
failed/<run-id>/  what a run that ended with a verdict leaves to look at
work/             private: one folder a run being made, and locks
"""

import errno
import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from job.errors import ConfigError, JobError, NoPermission, OutputError, ReadWriteError
from job.log import WARNING, event
from job.manifest import CONTRACT, MANIFEST, file_entries, read_manifest, write_manifest

T = TypeVar("T")

# How long a run waits for another that works under the same id.
WAIT_SECONDS = 60.0


@dataclass(frozen=True)
class Run:
    """One run's places in the output folder."""

    output: Path
    id: str

    @property
    def work(self) -> Path:
        """Private; goes when the run ends."""
        return self.output / "work" / "runs" / self.id

    @property
    def staging(self) -> Path:
        """Where the files are made that are published together."""
        return self.work / "staging"

    @property
    def published(self) -> Path:
        return self.output / "runs" / self.id

    @property
    def failed(self) -> Path:
        return self.output / "failed" / self.id


@contextmanager
def claim(output: Path, run_id: str, fingerprint: str) -> Iterator[Run]:
    """Holds a run id for this process alone; its work folder is new, and gone afterwards.

    Raises:
        ConfigError: the id is published with another fingerprint.
        DataError: the id is published, and its files are not those that were.
        ReadWriteError: another process held the id too long.
    """
    run = Run(output, run_id)
    with _lock(_locks(output) / run_id, f"the run id {run_id}"):
        try:
            if run.published.exists():
                require_same(run, fingerprint)
            else:
                shutil.rmtree(run.work, ignore_errors=True)
                run.staging.mkdir(parents=True)
            yield run
        finally:
            shutil.rmtree(run.work, ignore_errors=True)


def require_same(run: Run, fingerprint: str) -> None:
    """The id is published: intact and with this fingerprint, and `latest` is not behind it.

    Raises:
        ConfigError: it has another fingerprint.
        DataError: its files are not those that were published.
    """
    manifest = read_manifest(run.published)
    if manifest["fingerprint"] != fingerprint:
        raise ConfigError(
            [
                f"run id {run.id} is published already, from another configuration, version or "
                f"device; choose another --run-id"
            ]
        )
    _move_latest(run)


def publish(run: Run, fields: dict[str, Any], verified: Mapping[str, str], keep: int) -> None:
    """Makes the staged files visible: manifest, fsync, rename, `latest`, then retention.

    `fields` are the manifest's but for `files`; `verified` holds the SHA-256 of each file that was
    verified, which must be what is published.
    """
    files = file_entries(run.staging)
    changed = [name for name, digest in verified.items() if files[name]["sha256"] != digest]
    if changed:
        raise JobError(f"{changed[0]} changed between its verification and its publication")
    write_manifest(run.staging, {**fields, "files": files})
    _fsync_tree(run.staging)
    os.rename(run.staging, run.published)
    _fsync(run.published.parent)
    _move_latest(run)
    _remove_old(run, keep)


EVIDENCE = ("report.html", "verification.json", "metrics.jsonl")


def leave_evidence(run: Run, keep: int) -> None:
    """Moves what tells of a failure, never a model, to failed/<run-id>/; the last `keep` stay."""
    shutil.rmtree(run.failed, ignore_errors=True)
    run.failed.mkdir(parents=True)
    for name in EVIDENCE:
        if (run.staging / name).exists():
            os.replace(run.staging / name, run.failed / name)
    folders = [p for p in run.failed.parent.iterdir() if p.is_dir() and not p.is_symlink()]
    for old in sorted(folders, key=lambda p: p.stat().st_mtime)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    event("evidence", f"what there is to see is in {run.failed}", folder=str(run.failed))


def prepare_output(output: Path) -> None:
    """Makes the output folder and tries every operation that publishing needs; sweeps leftovers.

    Raises:
        OutputError: it is no folder, is read-only, or lacks an operation, which is named.
        NoPermission: the operating system refuses to write there.
        ReadWriteError: the disk is full or failing.
    """
    _require_mount(output)
    work = output / "work"
    for folder in (output / "runs", work / "runs", work / "locks"):
        _try("make a folder", partial(folder.mkdir, parents=True, exist_ok=True), output)
    probe = _try(
        "make a folder", lambda: Path(tempfile.mkdtemp(dir=work, prefix=".probe-")), output
    )
    try:
        _try("write and fsync a file", lambda: _write_and_sync(probe / "file"), output)
        _try("fsync a folder", lambda: _fsync(probe), output)
        _try("make a symbolic link", lambda: os.symlink("file", probe / "link"), output)
        _try("rename over a link", lambda: os.replace(probe / "file", probe / "link"), output)
        _try("lock a file", lambda: _lock_once(probe / "lock"), output)
    finally:
        shutil.rmtree(probe, ignore_errors=True)
    _sweep(output)


def _require_mount(output: Path) -> None:
    """In an image, which sets JOB_REQUIRE_MOUNT, what is not mounted is gone with the container."""
    if not os.environ.get("JOB_REQUIRE_MOUNT"):
        return
    place = Path(os.path.realpath(output))
    if not any(mount in (place, *place.parents) for mount in _mounts()):
        raise OutputError(
            f"nothing is mounted at {output}: what is published there would be gone with the "
            f'container; add -v "$PWD/artifacts:{output}" to docker run'
        )


def _mounts() -> list[Path]:
    """Where something is mounted, the root itself left out."""
    with open("/proc/self/mountinfo", "rb") as file:
        escaped = [line.split()[4] for line in file]
    # Blanks and the like stand there as octal escapes, other bytes as they are.
    fields = [os.fsdecode(e.decode("unicode_escape").encode("latin-1")) for e in escaped]
    return [Path(field) for field in fields if field != "/"]


def _try(operation: str, act: Callable[[], T], output: Path) -> T:
    try:
        return act()
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM):
            kind: type[JobError] = NoPermission
        elif error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            kind = ReadWriteError
        else:
            kind = OutputError
        raise kind(
            f"the output folder {output} cannot be used: to {operation} there failed "
            f"({error.strerror}); give a writable local folder with output.dir"
        ) from None


def _write_and_sync(path: Path) -> None:
    with open(path, "wb") as file:
        file.write(b"probe")
        file.flush()
        os.fsync(file.fileno())


def _lock_once(path: Path) -> None:
    with open(path, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _sweep(output: Path) -> None:
    """Removes work folders whose process is gone: nobody holds their lock."""
    for folder in (output / "work" / "runs").iterdir():
        lock = _locks(output) / folder.name
        if (held := _try_lock(lock)) is not None:
            shutil.rmtree(folder, ignore_errors=True)
            _unlock(lock, held)


def _locks(output: Path) -> Path:
    return output / "work" / "locks"


@contextmanager
def _lock(path: Path, what: str) -> Iterator[None]:
    """Holds the lock file at `path`, waiting a while for another process to let go of it."""
    deadline = time.monotonic() + WAIT_SECONDS
    while (held := _try_lock(path)) is None:
        if time.monotonic() > deadline:
            raise ReadWriteError(
                f"another process has held {what} for more than {WAIT_SECONDS:.0f} seconds; "
                f"run again later"
            )
        time.sleep(0.2)
    try:
        yield
    finally:
        _unlock(path, held)


def _try_lock(path: Path) -> int | None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever held it before may have removed the file: then this locks nothing that others see.
        if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(descriptor)
    return None


def _unlock(path: Path, descriptor: int) -> None:
    path.unlink(missing_ok=True)
    os.close(descriptor)


def _move_latest(run: Run) -> None:
    """Points `latest` at the run, unless it points at a newer one."""
    latest = run.output / "latest"
    with _lock(_locks(run.output) / ".latest", "the link `latest`"):
        current = _created(latest)
        created = _created(run.published)
        if created is None or (current is not None and current > created):
            return
        temporary = run.output / "work" / ".latest"
        temporary.unlink(missing_ok=True)
        os.symlink(os.path.join("runs", run.id), temporary)
        os.replace(temporary, latest)
        _fsync(run.output)


def _remove_old(run: Run, keep: int) -> None:
    """Removes the oldest published runs beyond `keep`: only whole runs of ours, never links."""
    latest = os.path.realpath(run.output / "latest")
    created = {
        folder: when
        for folder in (run.output / "runs").iterdir()
        if not folder.is_symlink() and (when := _created(folder)) is not None
    }
    for old in sorted(created, key=lambda folder: created[folder], reverse=True)[keep:]:
        if os.path.realpath(old) == latest or old == run.published:
            continue
        try:
            # Out of sight first, so that nobody sees a part of it.
            gone = run.work / "removed"
            os.rename(old, gone)
            shutil.rmtree(gone)
        except OSError as error:
            event("retention", f"{old} could not be removed: {error.strerror}", level=WARNING)


def _created(folder: Path) -> datetime | None:
    """When a published run was made, or None if this is not one of ours."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        if manifest["contract"] == CONTRACT:
            return datetime.fromisoformat(manifest["created"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def _fsync_tree(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        _fsync(path)
    _fsync(folder)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
