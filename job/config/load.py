"""Reads job.yaml, applies environment keys and overrides, and reports all faults at once."""

import codecs
import difflib
import json
import os
import stat
from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from job.config.reader import MAX_BYTES, Path, read
from job.config.schema import Config, KeyFaults, Section
from job.errors import ConfigError, MissingInputError, NoPermission

ENVIRONMENT_PREFIX = "JOB__"

# pydantic's words for what it expected, where they need more ("{}" is its own text).
_EXPECTED = {
    **dict.fromkeys(("model_type", "model_attributes_type"), "a section of key: value lines"),
    **dict.fromkeys(
        ("greater_than", "greater_than_equal", "less_than", "less_than_equal"), "a number {}"
    ),
}


def load_config(
    path: str | None, overrides: Sequence[str] = (), environ: Mapping[str, str] | None = None
) -> Config:
    """The configuration: command line before environment before file before defaults.

    `path` None takes the defaults alone; `overrides` are `key=value` strings with dotted keys.

    Raises:
        ConfigError: anything is wrong with the content; it lists every fault that was found.
        MissingInputError: there is no regular file at `path`.
        NoPermission: the file may not be read.
    """
    source = _Source()
    if path is not None:
        source.read_file(path)
    for name, text in sorted((environ or {}).items()):
        if name.startswith(ENVIRONMENT_PREFIX):
            key = name.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", ".")
            source.override(key, text, f"environment {name}")
    for override in overrides:
        key, _, text = override.partition("=")
        source.override(key, text, "command line")
    if source.unreadable:
        raise ConfigError(*source.faults)
    try:
        config = Config.model_validate(source.tree)
    except ValidationError as error:
        raise ConfigError(*source.faults, *source.explain(error)) from None
    if source.faults:
        raise ConfigError(*source.faults)
    return config


def to_yaml(config: Config, *, published: bool = False) -> str:
    """The resolved configuration as YAML; `published`: without paths, a data file by its name."""
    values = config.model_dump(mode="json", exclude={"output"} if published else None)
    if published and config.data.path is not None:
        values["data"]["path"] = os.path.basename(config.data.path)
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=100)


class _Dumper(yaml.SafeDumper):
    """Quotes every text that `read` would take for something else, "1e3" for one."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = None if read(text).value == text else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def _read_regular_file(path: str) -> bytes:
    """At most MAX_BYTES + 1 bytes of a regular file; opening a FIFO would wait for ever."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise MissingInputError(f"{path} is not a regular file; give a job.yaml with --config")
        with open(path, "rb") as file:
            return file.read(MAX_BYTES + 1)
    except PermissionError as error:
        raise NoPermission(f"{path} may not be read: {error.strerror}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a path"
        raise MissingInputError(
            f"there is no configuration at {path} ({reason}); give one with --config"
        ) from None


class _Source:
    """The raw tree of values with the origin of each, and the faults found so far."""

    def __init__(self) -> None:
        self.tree: dict[str, Any] = {}
        self.origins: dict[Path, str] = {}
        self.faults: list[str] = []
        self.faulty: set[Path] = set()  # keys with a fault already reported
        self.unreadable = False  # nothing further can be said about the content

    def read_file(self, path: str) -> None:
        content = _read_regular_file(path)
        name = os.path.basename(path)
        if len(content) > MAX_BYTES:
            self._stop(f"{name}: larger than {MAX_BYTES} bytes")
            return
        try:
            text = content.removeprefix(codecs.BOM_UTF8).decode()
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            self._stop(f"{name}:{line}: not UTF-8 text")
            return
        document = read(text)
        for line, key, message in document.faults:
            self.faulty.add(key)
            self.faults.append(f"{name}:{line}: {_dotted(key)}{message}")
        if isinstance(document.value, dict):
            self.tree = document.value
            self.origins = {key: f"{name}:{line}" for key, line in document.lines.items()}
        elif not document.faults:
            got = "an empty file" if document.value is None else _shown(document.value)
            self._stop(f"{name}:1: expected `key: value` lines, got {got}; the shortest is seed: 0")
        self.unreadable |= bool(document.faults) and not self.tree

    def _stop(self, fault: str) -> None:
        self.faults.append(fault)
        self.unreadable = True

    def override(self, key: str, text: str, origin: str) -> None:
        """Sets one dotted key from the text of a YAML value."""
        document = read(text)
        path = tuple(key.split("."))
        for _, _, message in document.faults:
            self.faulty.add(path)
            self.faults.append(f"{origin}: {key}: {message}")
        node = self.tree
        for part in path[:-1]:
            child = node.get(part)
            if child is None:  # not said, or null, as a section may be that is off
                child = node[part] = {}
            if not isinstance(child, dict):
                self.faults.append(f"{origin}: {key}: {part} is {_shown(child)}, not a section")
                return
            node = child
        node[path[-1]] = document.value
        stale = [known for known in self.origins if known[: len(path)] == path]
        for known in stale:
            del self.origins[known]
        self.origins[path] = origin

    def explain(self, invalid: ValidationError) -> list[str]:
        """One line a faulty key: where it stands, what was expected, what was got."""
        expected: dict[Path, list[str]] = {}
        got: dict[Path, Any] = {}
        for fault in invalid.errors(include_url=False):
            kind, context = fault["type"], fault.get("ctx", {})
            path = self._key_path(fault["loc"], unsaid=kind in ("missing", "value_error"))
            if kind == "union_tag_invalid":
                path = (*path, context["discriminator"].strip("'"))
                message = f"expected {context['expected_tags'].replace(', ', ' or ')}"
                fault["input"] = context["tag"]
            elif kind == "extra_forbidden":
                message = _unknown_key(str(path[-1]), fault["loc"])
            elif kind == "value_error":
                message = str(context["error"])
            else:
                message = _EXPECTED.get(kind, "{}").format(
                    fault["msg"].removeprefix("Input should be ")
                )
                message = f"expected {message}"
            found = [(path, fault["input"], message)]
            if isinstance(context.get("error"), KeyFaults):
                found = [((*path, key), *more) for key, *more in context["error"].faults]
            for where, value, said in found:
                if where not in self.faulty:
                    expected.setdefault(where, []).append(said)
                if kind not in ("extra_forbidden", "missing"):
                    got[where] = _shown(value)
        return [self._line(path, messages, got.get(path)) for path, messages in expected.items()]

    def _line(self, path: Path, messages: list[str], got: str | None) -> str:
        head, *more = dict.fromkeys(messages)
        text = head + "".join(f" or {m.removeprefix('expected ')}" for m in more)
        if got is not None:
            text += f", got {got}"
        return f"{self._origin(path)}: {_dotted(path)}{text}"

    def _origin(self, path: Path) -> str:
        """Where the key at `path` was said: itself, what holds it, or else what it holds."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.origins:
                return self.origins[path[:length]]
        within = (o for known, o in self.origins.items() if known[: len(path)] == path)
        return next(within, "configuration")

    def _key_path(self, location: Path, *, unsaid: bool) -> Path:
        """pydantic's location without the names of union members, which are no keys.

        `unsaid`: the last part is a key even where the document does not have it.
        """
        path: list[str | int] = []
        node: Any = self.tree
        for index, part in enumerate(location):
            known = (isinstance(node, dict) and part in node) or (
                isinstance(node, list) and isinstance(part, int) and part < len(node)
            )
            if known:
                node = node[part]
            if known or (unsaid and index == len(location) - 1):
                path.append(part)
        return tuple(path)


def _unknown_key(key: str, location: Path) -> str:
    keys = sorted(_model_at(location[:-1]).model_fields)
    near = difflib.get_close_matches(key, keys, n=1)
    return "unknown key; " + (
        f"did you mean {near[0]}?" if near else f"valid keys are {', '.join(keys)}"
    )


def _model_at(location: Path) -> type[BaseModel]:
    """The section at pydantic's location, whose parts are field names and union tags."""
    model: type[BaseModel] = Config
    choices: list[type[BaseModel]] = []
    for part in location:
        if part in model.model_fields:
            choices = _models(model.model_fields[str(part)].annotation)
            model = choices[0]
        else:
            # The tag of a union's member, or a key that the user chose.
            tags = {tag: c for c in choices for tag in _tags(c)}
            model = tags.get(part, model)
    return model


def _tags(model: type[BaseModel]) -> tuple[Any, ...]:
    name = model.model_fields.get("name")
    return get_args(name.annotation) if name is not None else ()


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) is None:
        return []
    return [model for member in get_args(annotation) for model in _models(member)]


def _dotted(path: Path) -> str:
    """`model.hidden[0]: `, or nothing for the whole document."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return f"{_printable(text)}: " if text else ""


def _shown(value: Any) -> str:
    """A value as one short line."""
    text = json.dumps(value, default=lambda v: v.model_dump() if isinstance(v, Section) else str(v))
    return text if len(text) <= 60 else text[:57] + "..."


def _printable(text: str) -> str:
    """Control characters escaped: a message must not drive a terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)[:200]
