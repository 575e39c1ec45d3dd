"""Writes docs/configuration.md, the reference of job.yaml, from its JSON Schema: `make docs`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent

INTRODUCTION = """\
# job.yaml

Every key has a default, so that job.yaml may be as short as `seed: 0`. An unknown, duplicate or
mistyped key ends the job with 78, naming line, key and the nearest key that there is. `key=value`
on the command line overrides a key by its path (`train.epochs=3`), `JOB__TRAIN__EPOCHS=3` in the
environment does the same; the command line comes before the environment, the environment before
the file. `python -m job check` prints what came of them all, `python -m job schema` the schema that
editors read and that this page is made from.

Other variables of the environment: `JOB_RUN_ID` is `--run-id`; `JOB_TERMINATION_LOG` names a file
that gets code and reason (`/dev/termination-log` if that exists); `JOB_SOURCE_REVISION` and
`JOB_SOURCE_IMAGE` are copied into manifest.json; `JOB_REQUIRE_MOUNT`, which the image sets, refuses
an output folder that is not mounted; `NO_COLOR` is heeded.
"""


def reference(schema: dict[str, Any]) -> str:
    """The page in Markdown."""
    return INTRODUCTION + "\n".join(_section("", schema, schema))


def _section(path: str, node: dict[str, Any], root: dict[str, Any]) -> Iterator[str]:
    """The keys of one object, and then each object below it."""
    yield f"\n## {path}\n" if path else ""
    if path and "description" in node:
        yield node["description"] + "\n"
    yield "| key | default | is | may be |"
    yield "|---|---|---|---|"
    below = []
    for name, entry in node["properties"].items():
        full = f"{path}.{name}".strip(".")
        either = entry.get("oneOf") or entry.get("anyOf") or [entry]
        kinds = [_resolved(kind, root) for kind in either]
        objects = [kind for kind in kinds if "properties" in kind]
        several = len(objects) > 1
        below += [(f"{full}: {_name(kind)}" if several else full, kind) for kind in objects]
        default = f"`{json.dumps(entry['default'])}`" if "default" in entry else ""
        cells = [
            f"`{name}`",
            "" if objects and not path else default,
            " ".join(entry.get("description", "").split()),
            " or ".join(_may_be(kind) for kind in kinds),
        ]
        yield "| " + " | ".join(cells) + " |"
    for full, kind in below:
        yield from _section(full, kind, root)


def _resolved(node: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    if "$ref" in node:
        found: dict[str, Any] = root["$defs"][node["$ref"].rpartition("/")[2]]
        return found
    return node


def _name(node: dict[str, Any]) -> str:
    return str(node["properties"]["name"]["const"])


def _may_be(node: dict[str, Any]) -> str:
    """What the schema allows, in words."""
    if "properties" in node:
        of_a_kind = "const" in node["properties"].get("name", {})
        return f"`{_name(node)}`" if of_a_kind else "its keys, below"
    if "const" in node:
        return f"`{node['const']}`"
    if "enum" in node:
        return ", ".join(f"`{value}`" for value in node["enum"])
    if node["type"] == "array":
        return f"a list, each {_may_be(node.get('items') or node['prefixItems'][0])}"
    limits = [
        f"{sign} {node[key]:g}"
        for key, sign in (
            ("minimum", "at least"),
            ("exclusiveMinimum", "above"),
            ("maximum", "at most"),
            ("exclusiveMaximum", "below"),
        )
        if key in node
    ]
    kind = {"string": "text", "object": "a mapping", "null": "`null`"}
    return ", ".join([kind.get(node["type"], node["type"]), *limits])


if __name__ == "__main__":
    schema = json.loads((HERE / "job.schema.json").read_text())
    (HERE / "configuration.md").write_text(reference(schema) + "\n")
