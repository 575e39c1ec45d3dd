"""Publishing as a transaction: a reader of the output folder sees the old model or the new, whole.

runs/<run-id>/    verified runs, each complete from the moment it can be seen
latest            -> runs/<run-id>, replaced atomically, never by an older run
failed/<run-id>/  what a run that ended with a verdict leaves to look at
work/             private: one folder a run being made, and locks
"""

import contextlib
import errno
import fcntl
import json
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from operator import itemgetter
from pathlib import Path
from typing import Any

from job import interrupt
from job.durable import fsync, move_folder, remove_folder, replacing
from job.errors import (
    ConfigError,
    DataError,
    Interrupted,
    JobError,
    MissingInputError,
    NoPermission,
    OutputError,
    ReadWriteError,
    Verdict,
)
from job.log import WARNING, event
from job.manifest import CONTRACT, MANIFEST, Identity, file_entries, read_manifest, write_manifest

# How long a run waits for another that works under the same id.
WAIT_SECONDS = 60.0


@dataclass(frozen=True)
class Run:
    """One run's places in the output folder."""

    output: Path
    id: str
    resumed: int = 0  # attempts before this one
    attempt: str = ""  # what this process's own folder is called

    @property
    def work(self) -> Path:
        """Private; what a run leaves here when it is cut off, it resumes from."""
        return self.output / "work" / "runs" / self.id

    @property
    def checkpoints(self) -> Path:
        return self.work / "checkpoints"

    @property
    def scratch(self) -> Path:
        """This process's own: even where locks do not lock, nobody else writes here."""
        return self.work / f"attempt-{self.attempt}"

    @property
    def staging(self) -> Path:
        """Where the files are made that are published together."""
        return self.scratch / "staging"

    @property
    def published(self) -> Path:
        return self.output / "runs" / self.id

    @property
    def failed(self) -> Path:
        return self.output / "failed" / self.id


# In a work folder: an Identity and "attempts". Without it there is nothing to resume.
STATE = "run.json"


@contextmanager
def claim(
    output: Path, run_id: str | None, identify: Callable[[str], Identity], new_id: str
) -> Iterator[Run]:
    """Holds a run for this process alone: that of `run_id`, or without one the newest unfinished
    run of this fingerprint that nobody holds, or else a new one called `new_id`. `identify` tells
    the identity of a run by its id, on which the seed may depend.

    Its work folder stays when the run is cut off, and goes once it is published or judged.

    Raises:
        ConfigError: the id is published or was begun with another fingerprint.
        DataError: the id is published, and its files are not those that were.
        ReadWriteError: another process held the id too long, or took this one's folder away.
        Interrupted: a signal came while another process held it.
    """
    with _lock_run(output, run_id, identify, new_id) as name:
        run = Run(output, name, attempt=secrets.token_hex(4))
        if run.published.exists():
            require_same(run, identify(name).fingerprint)
            yield run
        else:
            resumed = _begin(run, identify(name))
            try:
                yield replace(run, resumed=resumed)
            except Interrupted:
                raise
            except Exception as error:
                if not run.scratch.exists():  # whatever failed then failed for that
                    raise ReadWriteError(
                        f"another process took the folder {run.scratch} away: does the file "
                        f"system of the output lock files?"
                    ) from error
                if isinstance(error, Verdict):
                    remove_folder(run.work)
                raise
            finally:
                remove_folder(run.scratch)
        if run.published.exists():
            remove_folder(run.work)


@contextmanager
def _lock_run(
    output: Path, run_id: str | None, identify: Callable[[str], Identity], new_id: str
) -> Iterator[str]:
    """Holds the lock of the run that is to be made, and says its id."""
    if run_id is None:
        for folder in unfinished(output):
            lock, wanted = _locks(output) / folder.name, identify(folder.name).fingerprint
            if _state(folder).get("fingerprint") != wanted:
                continue
            if (held := _try_lock(lock)) is not None:
                try:
                    # It may have been finished between the look and the lock.
                    if _state(folder).get("fingerprint") == wanted:
                        yield folder.name
                        return
                finally:
                    _unlock(lock, held)
    name = run_id or new_id
    with _lock(_locks(output) / name, f"the run id {name}"):
        yield name


def _begin(run: Run, identity: Identity) -> int:
    """Makes or continues the work folder; how many attempts there were before."""
    state = _state(run.work)
    world_size = state.get("world_size", identity.world_size)
    if not state:
        remove_folder(run.work)
    elif state.get("training") == identity.training and world_size != identity.world_size:
        event(
            "world_size",
            f"the run was begun with {world_size} processes and goes on with "
            f"{identity.world_size}: the model's bytes may differ from those that either would "
            f"have made alone, since gradients are added up in another order",
            level=WARNING,
            begun=world_size,
            now=identity.world_size,
        )
    elif state["fingerprint"] != identity.fingerprint:
        raise ConfigError(
            f"run id {run.id} was begun with another configuration, version or device; choose "
            f"another --run-id, or remove {run.work} to give up what it has done"
        )
    for left in run.work.glob("attempt-*"):
        remove_folder(left)
    run.staging.mkdir(parents=True)
    attempts = state.get("attempts", 0)
    entry = {**asdict(identity), "attempts": attempts + 1}
    with replacing(run.work / STATE) as file:
        file.write(json.dumps(entry).encode())
    fsync(run.work)
    return int(attempts)


def _state(folder: Path) -> dict[str, Any]:
    """What is known of an unfinished run; nothing where it cannot be read."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        state = json.loads((folder / STATE).read_bytes())
        if isinstance(state["fingerprint"], str) and isinstance(state["attempts"], int):
            return dict(state)
    return {}


def unfinished(output: Path) -> dict[Path, float]:
    """Work folders of runs that were cut off or are being made, and when their last attempt began;
    the newest first."""
    begun: dict[Path, float] = {}
    for folder in (output / "work" / "runs").glob("[!.]*"):  # hidden ones are being deleted
        with contextlib.suppress(FileNotFoundError):  # it has just ended
            begun[folder] = (folder / STATE).stat().st_mtime
    return dict(sorted(begun.items(), key=itemgetter(1), reverse=True))


def require_same(run: Run, fingerprint: str) -> None:
    """The id is published: intact and with this fingerprint, and `latest` is not behind it.

    Raises:
        ConfigError: it has another fingerprint.
        DataError: its files are not those that were published.
    """
    try:
        manifest = read_manifest(run.published)
    except MissingInputError as error:
        raise DataError(str(error)) from None
    if manifest["fingerprint"] != fingerprint:
        raise ConfigError(
            f"run id {run.id} is published already, from another configuration, version or "
            f"device; choose another --run-id"
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
    interrupt.check()
    move_folder(run.staging, run.published)
    _move_latest(run)
    _remove_old(run, keep)


EVIDENCE = ("report.html", "verification.json", "failing_input.npy", "metrics.jsonl")


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


@dataclass
class Space:
    """How many bytes, about, a run needs on the disk of its output, once that is known.

    As a context it names them where a write finds the disk full.
    """

    output: Path
    needed: int = 0

    def require(self, weights: int) -> None:
        """Room for a model of so many float32 weights: three checkpoints, one of them being
        written, each with two moments and the best weights; four model files, and a wrong one; what
        verifies them, in float64; 512 KiB for the rest.

        Raises:
            ReadWriteError: the disk has not as much.
        """
        self.needed = 4 * weights * (3 * 4 + 5 + 2) + 512 * 2**10
        if self._free() < self.needed:
            raise self._full()

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: object, __: object) -> None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise self._full() from error

    def _free(self) -> int:
        return shutil.disk_usage(self.output).free

    def _full(self) -> ReadWriteError:
        return ReadWriteError(
            f"the disk of {self.output} is full: the run needs about {self.needed:,} bytes and "
            f"{self._free():,} are free; lower output.keep, or give another output.dir"
        )


def prepare_output(output: Path) -> None:
    """Makes the output folder and tries every operation that publishing needs.

    Raises:
        OutputError: it is no folder, is read-only, or lacks an operation, which is named.
        NoPermission: the operating system refuses to write there.
        ReadWriteError: the disk is full or failing.
    """
    _require_mount(output)
    latest = output / "latest"
    if latest.exists() and not latest.is_symlink():
        raise OutputError(
            f"{latest} is no link, and so cannot be made to name another run; move it away"
        )
    work = output / "work"
    with _trying("make a folder", output):
        for folder in (output / "runs", work / "runs", work / "locks"):
            folder.mkdir(parents=True, exist_ok=True)
        probe = Path(tempfile.mkdtemp(dir=work, prefix=".probe-"))
    try:
        with _trying("write and fsync a file", output), open(probe / "file", "wb") as file:
            file.write(b"probe")
            file.flush()
            os.fsync(file.fileno())
        with _trying("fsync a folder", output):
            fsync(probe)
        with _trying("make a symbolic link", output):
            os.symlink("file", probe / "link")
        with _trying("rename over a link", output):
            os.replace(probe / "file", probe / "link")
        with _trying("lock a file", output), open(probe / "lock", "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        shutil.rmtree(probe, ignore_errors=True)


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


@contextmanager
def _trying(operation: str, output: Path) -> Iterator[None]:
    try:
        yield
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


def sweep(output: Path) -> None:
    """Removes what nobody holds and nobody can resume."""
    resumable = unfinished(output)
    for folder in (output / "work" / "runs").iterdir():
        if folder not in resumable:
            _remove_if_free(folder)


def _remove_if_free(folder: Path) -> None:
    """Removes the work folder of a run that no process holds."""
    lock = folder.parent.parent / "locks" / folder.name
    if (held := _try_lock(lock)) is not None:
        remove_folder(folder)
        _unlock(lock, held)


def _locks(output: Path) -> Path:
    return output / "work" / "locks"


@contextmanager
def _lock(path: Path, what: str) -> Iterator[None]:
    """Holds the lock file at `path`, waiting a while for another process to let go of it."""
    deadline = time.monotonic() + WAIT_SECONDS
    while (held := _try_lock(path)) is None:
        interrupt.check()
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
    with contextlib.suppress(BlockingIOError, FileNotFoundError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever held it before may have removed the file: then this locks nothing that others see.
        if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
            return descriptor
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
        temporary = run.output / "work" / f".latest-{run.attempt}"
        os.symlink(os.path.join("runs", run.id), temporary)
        os.replace(temporary, latest)
        fsync(run.output)


def _remove_old(run: Run, keep: int) -> None:
    """Removes the oldest published runs beyond `keep`, only whole runs of ours and never links,
    and unfinished runs that are older than all that stay."""
    latest = os.path.realpath(run.output / "latest")
    created = {
        folder: when
        for folder in (run.output / "runs").iterdir()
        if not folder.is_symlink() and (when := _created(folder)) is not None
    }
    newest = sorted(created, key=lambda folder: created[folder], reverse=True)
    if len(newest) >= keep:
        oldest = created[newest[keep - 1]].timestamp()
        for folder, begun in unfinished(run.output).items():
            if begun < oldest:
                _remove_if_free(folder)
    for old in newest[keep:]:
        if os.path.realpath(old) == latest or old == run.published:
            continue
        try:
            # Out of sight first, so that nobody sees a part of it.
            gone = run.scratch / "removed"
            os.rename(old, gone)
            shutil.rmtree(gone)
        except OSError as error:
            event("retention", f"{old} could not be removed: {error.strerror}", level=WARNING)


def _created(folder: Path) -> datetime | None:
    """When a published run was made, or None if this is not one of ours."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        manifest = json.loads((folder / MANIFEST).read_bytes())
        if manifest["contract"] == CONTRACT:
            return datetime.fromisoformat(manifest["created"])
    return None
