"""What the job says on stderr: one line an event, for people or as JSON.

Standard library only, but for the bar, because `verify` and `predict` also run where nothing else
is installed.
"""

import importlib.util
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Literal

INFO, WARNING, CRITICAL = logging.INFO, logging.WARNING, logging.CRITICAL

_RED, _GREEN, _YELLOW, _PLAIN = "\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[0m"

_logger = logging.getLogger("job")
_logger.addHandler(logging.NullHandler())


def event(name: str, message: str = "", /, *, level: int = INFO, **fields: object) -> None:
    """Logs one event: a stable `name` for programs, a `message` for people, `fields` for both."""
    _logger.log(level, message or name, extra={"event": name, "fields": fields})


def configure(style: Literal["text", "json"] | None, *, quiet: bool) -> None:
    """Sends events to stderr as text (the default on a terminal) or as JSON lines.

    Text has colour on a terminal, unless NO_COLOR is set (no-color.org) or TERM is dumb.
    """
    if style is None:
        style = "text" if sys.stderr.isatty() else "json"
    handler = logging.StreamHandler(sys.stderr)
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    colour = sys.stderr.isatty() and not plain
    handler.setFormatter(_TextLines(colour=colour) if style == "text" else _JsonLines())
    _logger.handlers = [handler]
    _logger.propagate = False
    _logger.setLevel(CRITICAL if quiet else INFO)
    # A line that cannot be written, for want of space say, is lost; the run is not.
    logging.raiseExceptions = False


def line(name: str, message: str, /, **fields: object) -> bytes:
    """What `event` would print at level CRITICAL, for who must not wait for a lock."""
    record = _logger.makeRecord(
        "job", CRITICAL, "", 0, message, (), None, extra={"event": name, "fields": fields}
    )
    return (_logger.handlers[0].format(record) + "\n").encode()


@contextmanager
def progress(total: int, unit: str, done: int = 0) -> Iterator[Callable[..., object]]:
    """A bar on a terminal's stderr, with rate and remaining time, above which events are logged.

    Called with a count it moves on by so many units, and shows what keywords it is given. There is
    none where stderr is for programs, or is to be quiet, or tqdm is not installed.
    """
    handler = next(iter(_logger.handlers))
    wanted = isinstance(handler.formatter, _TextLines) and _logger.isEnabledFor(INFO)
    if not (wanted and sys.stderr.isatty() and importlib.util.find_spec("tqdm")):
        yield lambda count, **shown: None
        return
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    with (
        logging_redirect_tqdm([_logger]),
        tqdm(total=total, unit=f" {unit}", unit_scale=True, leave=False, initial=done) as bar,
    ):

        def advance(count: int, **shown: str) -> None:
            if shown:
                bar.set_postfix(shown, refresh=False)
            bar.update(count)

        yield advance


class _TextLines(logging.Formatter):
    """The message alone; it carries what a person wants of the fields."""

    def __init__(self, *, colour: bool) -> None:
        super().__init__()
        self.colour = colour

    def format(self, record: logging.LogRecord) -> str:
        text = ("warning: " if record.levelno == WARNING else "") + record.getMessage()
        colours = {WARNING: _YELLOW, CRITICAL: _RED}
        good = getattr(record, "event", None) == "end"
        colour = colours.get(record.levelno, _GREEN if good else None)
        return f"{colour}{text}{_PLAIN}" if self.colour and colour else text


class _JsonLines(logging.Formatter):
    """{"time", "level", "event", "message", fields...}, one object a line."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = getattr(record, "fields", {})
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": getattr(record, "event", record.name),
            "message": record.getMessage(),
            **fields,
        }
        return json.dumps(line, default=str)
