"""YAML text -> plain values, with the line of every key. Strict where YAML surprises.

PyYAML's loaders turn `010` into 8, `off` into False, `1e-3` into a string, keep the last of two
equal keys, and can be made to work for hours by a few hundred bytes of aliases. So only PyYAML's
event parser is used here, and the values are built from its events by YAML 1.2's core rules.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

MAX_BYTES = 64 * 1024
MAX_DEPTH = 20
MAX_NODES = 10_000
MAX_KEYS = 1000  # of one mapping

Path = tuple[str | int, ...]

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9_]+(\.[0-9]*)?")
_WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}

_VALUES = (yaml.ScalarEvent, yaml.CollectionStartEvent)


@dataclass
class Document:
    """One YAML document: its value, the 1-based line of every key, and (line, path, fault)s."""

    value: Any = None
    lines: dict[Path, int] = field(default_factory=dict)
    faults: list[tuple[int, Path, str]] = field(default_factory=list)


class _Unreadable(Exception):
    """The text cannot be read further; args are (line, path, message)."""


def read(text: str) -> Document:
    """Reads one YAML document; never raises, what is wrong is in `faults`."""
    document = Document()
    try:
        _Builder(text, document).build()
    except _Unreadable as stop:
        document.faults.append(stop.args)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = error.problem or error.context or "not YAML"
        if "'\\t'" in problem:
            problem = "a tab; indent with blanks"
        document.faults.append((mark.line + 1 if mark else 1, (), f"not valid YAML: {problem}"))
    except yaml.YAMLError as error:
        document.faults.append((1, (), f"not valid YAML: {str(error).splitlines()[0]}"))
    return document


class _Builder:
    """Builds the value of one document from PyYAML's events."""

    def __init__(self, text: str, document: Document) -> None:
        self.events: Iterator[yaml.Event] = yaml.parse(text, Loader=yaml.SafeLoader)
        self.document = document
        self.nodes = 0

    def build(self) -> None:
        next(self.events)  # the start of the stream
        if isinstance(next(self.events), yaml.StreamEndEvent):
            return
        self.document.value = self.node(next(self.events), ())
        next(self.events)  # the end of the document
        after = next(self.events)
        if not isinstance(after, yaml.StreamEndEvent):
            raise _Unreadable(_line(after), (), "a second document; only one is read")

    def node(self, event: yaml.Event, path: Path) -> Any:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise _Unreadable(_line(event), path, f"more than {MAX_NODES} values")
        if len(path) > MAX_DEPTH:
            raise _Unreadable(_line(event), (), f"nested deeper than {MAX_DEPTH} levels")
        if not isinstance(event, _VALUES) or event.anchor is not None:
            raise _Unreadable(
                _line(event), path, "anchors (&) and aliases (*) are not read; write the value out"
            )
        if event.tag is not None:
            self.fault(event, path, f"the tag {event.tag} is not read; write the plain value")
        if isinstance(event, yaml.ScalarEvent):
            return self.scalar(event, path)
        return (
            self.mapping(path) if isinstance(event, yaml.MappingStartEvent) else self.sequence(path)
        )

    def mapping(self, path: Path) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                raise _Unreadable(_line(event), path, "a key must be a plain word")
            if len(found) == MAX_KEYS:  # each would be a fault, with the nearest valid key
                raise _Unreadable(_line(event), path, f"more than {MAX_KEYS} keys")
            key, here = event.value, (*path, event.value)
            if event.anchor is not None or event.tag is not None:
                raise _Unreadable(_line(event), here, "a key must be a plain word")
            if key in found:
                first = self.document.lines[here]
                self.fault(event, here, f"duplicate key; it stands in line {first} already")
            else:
                self.document.lines[here] = _line(event)
            found[key] = self.node(next(self.events), here)
        return found

    def sequence(self, path: Path) -> list[Any]:
        found: list[Any] = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            here = (*path, len(found))
            self.document.lines[here] = _line(event)
            found.append(self.node(event, here))
        return found

    def scalar(self, event: yaml.ScalarEvent, path: Path) -> Any:
        text: str = event.value
        if event.style is not None:  # quoted
            return text
        if text in _WORDS:
            return _WORDS[text]
        if _INTEGER.fullmatch(text):
            if len(text) > 20:
                self.fault(event, path, f"an integer of {len(text)} digits is too large")
                return 0
            return int(text)
        if _FLOAT.fullmatch(text):
            return float(text)
        if _LEADING_ZERO.fullmatch(text):
            self.fault(event, path, f"{text} starts with 0: write {text.lstrip('+-0') or 0}")
        return text

    def fault(self, event: yaml.Event, path: Path, message: str) -> None:
        self.document.faults.append((_line(event), path, message))


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 1
