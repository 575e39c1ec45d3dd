"""Every way in which the job ends, with its exit code: the one place where they are drawn.

    JobError                 70  a defect, or anything not named below
      UsageError             64  the command line is wrong
      DataError              65  input data or a published file is corrupt or malformed
      MissingInputError      66  an input is not there
      DeviceError            69  the requested device is not available
      OutOfMemory            71  host or device memory is not enough
      OutputError            73  the output cannot be created
      ReadWriteError         74  reading or writing failed
        ProcessLost          74  another process of this run is gone
      Interrupted            75  stopped by a signal, state saved
      NoPermission           77  the operating system refused
      ConfigError            78  the content of job.yaml, an override or an environment key
      Verdict                    the job's own: nothing is published, evidence is left
        Diverged             80  a loss, a gradient or an answer is not finite
        ExportMismatch       81  the exported files do not agree with the trained model
        QualityUnmet         82  a quality gate is unmet

Codes 64 to 78 are those of sysexits.h; 80 and up are the job's own verdicts. 1, 2 and 126 and up
are never used: a crash of the interpreter, of the shell or a signal must not look like a verdict.
"""

import errno
from enum import IntEnum


class ExitCode(IntEnum):
    """The exit codes of ``python -m job`` and of the image."""

    OK = 0
    USAGE = 64
    DATA = 65
    NO_INPUT = 66
    UNAVAILABLE = 69
    SOFTWARE = 70
    NO_MEMORY = 71
    CANNOT_CREATE = 73
    IO = 74
    INTERRUPTED = 75
    NO_PERMISSION = 77
    CONFIG = 78
    DIVERGED = 80
    MISMATCH = 81
    QUALITY = 82


class JobError(Exception):
    """An end of the job that is not success; the message says what happened and what to do."""

    code = ExitCode.SOFTWARE


class UsageError(JobError):
    """The command line names an unknown command or flag, or a flag's value cannot be used."""

    code = ExitCode.USAGE


class DataError(JobError):
    """Input data or a published file is corrupt, malformed or missing from its folder."""

    code = ExitCode.DATA


class MissingInputError(JobError):
    """An input is not there: job.yaml, a data file, the directory to verify."""

    code = ExitCode.NO_INPUT


class DeviceError(JobError):
    """The requested device is not available, or its driver cannot run this build of torch."""

    code = ExitCode.UNAVAILABLE


class OutOfMemory(JobError):
    """Memory was refused by estimate, or an allocation on the host or the device failed."""

    code = ExitCode.NO_MEMORY


class OutputError(JobError):
    """The output cannot be created: read-only, not a folder, or it lacks an operation."""

    code = ExitCode.CANNOT_CREATE


class ReadWriteError(JobError):
    """Reading or writing failed, the disk is full, or another run held this work too long."""

    code = ExitCode.IO


class ProcessLost(ReadWriteError):
    """Another process of this run is gone or does not answer; its own reason is the better one."""


class Interrupted(JobError):
    """A signal stopped the run; its state is saved, and the same command resumes it."""

    code = ExitCode.INTERRUPTED


class NoPermission(JobError):
    """The operating system refused access."""

    code = ExitCode.NO_PERMISSION


class ConfigError(JobError):
    """The content of job.yaml, an override or an environment key is wrong.

    `faults` holds one line for each fault found.
    """

    code = ExitCode.CONFIG

    def __init__(self, *faults: str) -> None:
        self.faults = list(faults)
        super().__init__("\n".join(faults))


class Verdict(JobError):
    """The job's own judgement on what it made: nothing is published, evidence is left."""


class Diverged(Verdict):
    """A loss, a gradient or an answer to held-out rows is not finite; no such update was made."""

    code = ExitCode.DIVERGED


class ExportMismatch(Verdict):
    """The exported files do not agree with the trained model."""

    code = ExitCode.MISMATCH


class QualityUnmet(Verdict):
    """A test metric missed its gate, or is not a number."""

    code = ExitCode.QUALITY


def known(error: Exception) -> JobError | None:
    """The job's own error if this is one, or the operating system's and torch's as the job's."""
    if isinstance(error, JobError):
        return error
    # torch says so on CUDA by a class of its own, on the CPU only in words.
    torchs = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
    if isinstance(error, MemoryError) or torchs:
        return OutOfMemory(
            "memory is not enough; lower train.batch_size, data.samples or model.hidden"
        )
    if isinstance(error, PermissionError):
        return NoPermission(f"not permitted: {error}")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ReadWriteError(f"the disk is full: {error}")
    if isinstance(error, OSError) and error.errno is not None:
        return ReadWriteError(f"reading or writing failed: {error}")
    return None


def error_of(code: int, message: str) -> JobError:
    """The error that ended another process of the job with `code`; a defect for any other code."""
    kinds: list[type[JobError]] = [JobError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    return next((kind for kind in kinds if kind.code == code), JobError)(message)
