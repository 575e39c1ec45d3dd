"""Arguments, streams, and the one boundary where every error becomes an exit code."""

import argparse
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import job
from job import interrupt, log
from job.errors import (
    ConfigError,
    ExitCode,
    ExportMismatch,
    Interrupted,
    JobError,
    ProcessLost,
    UsageError,
    known,
)
from job.ranks import ranks_of

if TYPE_CHECKING:
    from job.config import Config

DEFAULT_TERMINATION_LOG = "/dev/termination-log"


def main(arguments: Sequence[str], started: float | None = None) -> int:
    """Runs one command and returns its exit code.

    `started` is when the process began, in seconds since the epoch.
    """
    log.configure(None, quiet=False)
    started = time.time() if started is None else started
    try:
        options = _parse(_with_command(list(arguments)))
        options.started = started
        log.configure(options.log_format, quiet=options.quiet)
        if options.run is not _train:
            interrupt.at_once(last_words)
        # Libraries print where they like; stdout is for the result alone.
        with contextlib.redirect_stdout(sys.stderr):
            result: str = options.run(options)
        if result:
            _print_result(result)
        return ExitCode.OK
    except Exception as error:  # noqa: BLE001  this is the boundary
        return _fail(known(error) or _defect(error), started)


def _print_result(result: str) -> None:
    """Prints on stdout itself, wherever `sys.stdout` points by now."""
    try:
        print(result, file=sys.__stdout__, flush=True)
    except BrokenPipeError:
        # The reader has gone; the work is done all the same. Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def last_words(signal_number: int) -> None:
    """What is said by the thread that ends the process at once, past every lock."""
    code, name = 128 + signal_number, signal.Signals(signal_number).name
    reason = "ended at once by a signal"
    os.write(2, log.line("end", f"{name} ({code}): {reason}", code=code, name=name))
    _write_termination_log(code, name, reason)


def _fail(error: JobError, started: float) -> int:
    reason = str(error)
    if isinstance(error, ConfigError) and len(error.faults) > 1:
        for fault in error.faults:
            log.event("fault", fault, level=log.CRITICAL)
        reason = f"{len(error.faults)} faults in the configuration, the first: {error.faults[0]}"
    # torchrun also interrupts the processes that did not fail.
    told_since = started if isinstance(error, ProcessLost | Interrupted) else None
    return _end(error.code, reason, told_since)


def _end(code: ExitCode, reason: str, unless_told_since: float | None = None) -> int:
    """States code and reason on stderr's last line and in the termination log."""
    reason = " ".join(reason.split())
    name, level = code.name, log.CRITICAL if code else log.INFO
    log.event("end", f"{name} ({code}): {reason}", level=level, code=int(code), name=name)
    _write_termination_log(code, name, reason, unless_told_since=unless_told_since)
    return code


def _write_termination_log(
    code: int, name: str, reason: str, *, unless_told_since: float | None = None
) -> None:
    """One JSON object of at most 4,096 bytes, what a kubelet reads, which is why the reason is cut
    off after 600 characters, of 6 bytes at the most; best effort, it never changes the code.

    The reason of a process that failed first, told since that time, is not replaced; that of an
    earlier attempt is.
    """
    path = os.environ.get("JOB_TERMINATION_LOG")
    if path is None and os.path.exists(DEFAULT_TERMINATION_LOG):
        path = DEFAULT_TERMINATION_LOG
    if not path:
        return
    entry = {"code": int(code), "name": name, "reason": reason[:600]}
    with contextlib.suppress(OSError):
        if unless_told_since is not None and os.path.isfile(path):
            there = os.stat(path)
            if there.st_size > 0 and there.st_mtime >= unless_told_since:
                return
        with open(path, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")


def _defect(error: Exception) -> JobError:
    traceback.print_exc()
    return JobError(f"{type(error).__name__}: {error}")


class _Parser(argparse.ArgumentParser):
    """argparse would end the process with 2, which is never one of our codes."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; `python -m job --help` shows what there is")


def _parse(arguments: list[str]) -> argparse.Namespace:
    """Overrides may stand anywhere; argparse takes only the first unbroken row of them."""
    options, rest = _parser().parse_known_args(arguments)
    takes_overrides = hasattr(options, "overrides")
    if takes_overrides:
        options.overrides += rest
    for argument in options.overrides if takes_overrides else rest:
        if argument.startswith("-") or "=" not in argument or not takes_overrides:
            raise UsageError(
                f"unknown argument {argument!r}; a command comes first, then key=value; "
                f"`python -m job --help` shows more"
            )
    return options


def _with_command(arguments: list[str]) -> list[str]:
    """`train` is the default command: `python -m job device=cpu` trains."""
    first = next(iter(arguments), "--config")
    general = first in ("-h", "--help", "--version")
    option = first.startswith("-") or "=" in first
    return ["train", *arguments] if option and not general else arguments


def _parser() -> _Parser:
    common = _Parser(add_help=False)
    common.add_argument(
        "--log-format",
        choices=("text", "json"),
        help="stderr for people or for programs; by default text on a terminal, else json",
    )
    common.add_argument(
        "--quiet", action="store_true", help="print nothing but the result and what went wrong"
    )
    configured = _Parser(add_help=False)
    configured.add_argument(
        "--config", metavar="FILE", default="job.yaml", help="the configuration (job.yaml)"
    )
    configured.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="overrides a key of the configuration, train.epochs=3 for one",
    )

    parser = _Parser(prog="python -m job", description=job.__doc__)
    parser.add_argument("--version", action="version", version=f"job {job.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)

    def command(
        name: str, run: Callable[[argparse.Namespace], str], does: str, *parents: _Parser
    ) -> _Parser:
        found = commands.add_parser(name, parents=[common, *parents], help=does)
        found.set_defaults(run=run)
        return found

    train = command("train", _train, "train, export, verify and publish (the default)", configured)
    train.add_argument("--output", metavar="DIR", help="the output folder (output.dir)")
    train.add_argument(
        "--run-id", metavar="ID", help="the run's name; running a published id again exits 0"
    )

    check = command("check", _check, "validate the configuration and print it", configured)
    check.add_argument(
        "--preflight", action="store_true", help="also export and verify the untrained model"
    )

    verify = command("verify", _verify, "verify a published folder again")
    verify.add_argument("folder", metavar="DIR", help="a published run: artifacts/latest for one")
    verify.add_argument(
        "--self-test",
        action="store_true",
        help="then verify the verifier: make wrong exports of this model and see them refused",
    )

    predict = command("predict", _predict, "run the published ONNX model on the rows of a file")
    predict.add_argument("folder", metavar="DIR", help="a published run: artifacts/latest for one")
    predict.add_argument(
        "--input", metavar="FILE", required=True, help="rows: .csv, .parquet, .npy"
    )
    predict.add_argument(
        "--output", metavar="FILE", required=True, help="answers, of the same kind"
    )

    doctor = command("doctor", _doctor, "say what this machine or container offers", configured)
    doctor.add_argument("--output", metavar="DIR", help="the output folder (output.dir)")

    command("schema", _schema, "print the JSON Schema of job.yaml")
    return parser


def _load(options: argparse.Namespace) -> "Config":
    from job.config import load_config

    overrides = list(options.overrides)
    if getattr(options, "output", None) is not None:
        overrides.append(f"output.dir={json.dumps(options.output, ensure_ascii=False)}")
    return load_config(options.config, overrides, os.environ)


def _train(options: argparse.Namespace) -> str:
    from job.device import choose_threads, settle_threads

    settle_threads()
    ranks = ranks_of(os.environ)
    if not ranks.first:
        log.configure(options.log_format, quiet=True)
    config = _load(options)
    run_id = _run_id(options.run_id)
    if not ranks.first:
        from job.pipeline import follow

        follow(config, ranks)
        return ""  # the first goes on, and tells the end
    from job.clock import Clock
    from job.forkserver import ForkServer

    clock = Clock(options.started)
    threads, _ = choose_threads(config, ranks.local_size)
    with ForkServer(threads) as server:  # it imports what it needs while this process does
        from job.pipeline import run_job

        clock.stages["import"] = time.time() - options.started
        published = run_job(config, run_id, clock, server, ranks)
    _end(ExitCode.OK, f"{published} is published and verified")
    return str(published)


def _run_id(flag: str | None) -> str | None:
    from job.identity import check_run_id

    if flag is not None:
        return check_run_id(flag)
    from_environment = os.environ.get("JOB_RUN_ID")
    if not from_environment:
        return None
    try:
        return check_run_id(from_environment)
    except UsageError as error:
        raise ConfigError(f"environment JOB_RUN_ID: {error}") from None


def _check(options: argparse.Namespace) -> str:
    from job.config import to_yaml

    config = _load(options)
    if options.preflight:
        from job.preflight import preflight

        with tempfile.TemporaryDirectory() as folder:
            verification = preflight(config.for_run("preflight"), Path(folder))
        verification.require_agreement()
        count = len(verification.comparisons)
        log.event("preflight", f"{count} comparisons of the untrained model agree")
    return to_yaml(config).rstrip()


def _verify(options: argparse.Namespace) -> str:
    from job.verify import verify_published

    folder = Path(options.folder)
    verification = verify_published(folder)
    for line in verification.skipped:
        log.event("skipped", f"skipped: {line}", level=log.WARNING)
    if verification.faults:
        for fault in verification.faults:
            log.event("fault", fault, level=log.CRITICAL)
        if verification.diagnosis:
            log.event("diagnosis", str(verification.diagnosis), level=log.CRITICAL)
        raise ExportMismatch(f"the files in {folder} do not agree: {verification.faults[0]}")
    count, headroom = len(verification.comparisons), verification.headroom
    log.event(
        "verified",
        f"{count} comparisons agree, headroom {headroom:.3f}",
        comparisons=count,
        headroom=headroom,
    )
    if options.self_test:
        _self_test(folder)
    _end(ExitCode.OK, f"{folder} is verified")
    return str(folder)


def _self_test(folder: Path) -> None:
    from job.verify.judgement import score
    from job.verify.selftest import self_test

    judged = []
    for one in self_test(folder):
        level = log.INFO if one.right else log.CRITICAL
        log.event("mutant", str(one), level=level, **asdict(one))
        judged.append(one)
    message, counts = score(judged)
    log.event("self-test", f"self-test: {message}", **counts)
    for one in judged:
        if not one.right:
            raise ExportMismatch(f"the verifier cannot be trusted with {folder}: {message}; {one}")


def _predict(options: argparse.Namespace) -> str:
    from job.predict import predict_file

    rows = predict_file(Path(options.folder), Path(options.input), Path(options.output))
    _end(ExitCode.OK, f"{rows} rows answered in {options.output}")
    return str(options.output)


def _doctor(options: argparse.Namespace) -> str:
    """All findings; ends with the first that would stop `train`."""
    config = _load(options)
    from job.doctor import examine

    trouble: JobError | None = None
    lines = []
    for what, finding in examine(config):
        if isinstance(finding, JobError):
            trouble = trouble or finding
            finding = f"NOT USABLE: {finding}"
        lines.append(f"{what + ':':<18} {finding}")
    report = "\n".join(lines)
    if trouble is not None:
        _print_result(report)
        raise trouble
    return report


def _schema(options: argparse.Namespace) -> str:
    from job.config import Config

    return json.dumps(Config.model_json_schema(), indent=2)
