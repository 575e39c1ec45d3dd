"""The page, from plain values."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from job.report import figures
from job.report.snippets import snippets

_PAGE = Path(__file__).with_name("page.html")

# What is shown: so many rows as dots, outputs, classes, and faults at the most.
MAX_DOTS, MAX_OUTPUTS, MAX_CLASSES, MAX_FAULTS = 500, 4, 30, 10


def render_report(
    *,
    headline: str,
    sentence: str,
    facts: Mapping[str, object],
    good: bool = False,
    epochs: Sequence[Mapping[str, Any]] = (),
    loss: str | None = None,
    floor: Mapping[str, float] | None = None,
    metrics: Mapping[str, Mapping[str, float | None]] | None = None,
    signature: Mapping[str, Any] | None = None,
    targets: NDArray[Any] | None = None,
    answers: NDArray[Any] | None = None,
    example: tuple[Sequence[float], Sequence[float]] = ((), ()),
    verification: Mapping[str, Any] | None = None,
    stages: Mapping[str, float] | None = None,
    files: Mapping[str, Mapping[str, Any]] | None = None,
) -> str:
    """The page as HTML, every value escaped.

    `facts` are what is listed of the run, `run`, its id, among them; `epochs` are the lines of
    metrics.jsonl, `loss` the metric that the training minimised, `floor` each metric's best
    reachable value; `signature` and `files` are the manifest's; `targets` and `answers` (N, O)
    those of some test rows, `example` one row with its answer; `verification` what
    verification.json holds; `stages` the seconds of each.
    """
    floor = floor or {}
    drawn: list[tuple[str, str, str]] = []
    confusion = None
    if epochs:
        best = floor.get(loss) if loss else None
        caption = "As it is minimised; the training's is the mean over the epoch, while it falls."
        if best is not None:
            caption += " No model can be better than the noise floor, but by memorising."
        drawn.append(("Loss by epoch", figures.loss_by_epoch(epochs, best, loss), caption))
    if signature and targets is not None and answers is not None:
        if signature["task"] == "classification":
            confusion = _confusion(signature["outputs"][0]["classes"], targets[:, 0], answers)
        else:
            drawn += _of_numbers(signature["outputs"][0]["targets"], targets, answers)
    if verification and (svg := figures.share_of_bound(verification["comparisons"])):
        caption = (
            "The largest error of each engine on each input, as a share of what float32 "
            "arithmetic may be off by there; 100 % is the limit, the scale is logarithmic. "
            f"At its left end are errors below {100 * figures.LEAST:g} %, 0 among them."
        )
        drawn.append(("Errors against their bound", svg, caption))
    if stages:
        caption = "Seconds from the start up to this page."
        drawn.append(("Stages", figures.timeline(stages), caption))
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    return environment.from_string(_PAGE.read_text()).render(
        headline=headline,
        sentence=sentence,
        good=good,
        facts=facts,
        figures=[{"title": t, "svg": Markup(svg), "caption": c} for t, svg, c in drawn],
        metrics=metrics,
        floor=floor,
        confusion=confusion,
        verification=verification,
        max_faults=MAX_FAULTS,
        summary=_summary(verification["comparisons"]) if verification else [],
        snippets=snippets(signature, *example) if signature else [],
        files=files,
        number=lambda value: "unknown" if value is None else f"{value:.5g}",
    )


def _of_numbers(
    names: Sequence[str], targets: NDArray[Any], answers: NDArray[Any]
) -> Iterator[tuple[str, str, str]]:
    for name, y, p in list(zip(names, targets.T, answers.T, strict=True))[:MAX_OUTPUTS]:
        dots = min(len(y), MAX_DOTS)
        yield (
            f"Prediction against target: {name}",
            figures.answers_by_target(y[:dots], p[:dots]),
            f"{dots:,} test rows; on the line the two are equal.",
        )
        yield (
            f"Residuals: {name}",
            figures.residuals(p.astype(np.float64) - y),
            f"How often prediction - target was how large, {len(y):,} test rows.",
        )


def _confusion(
    names: Sequence[Any], targets: NDArray[Any], answers: NDArray[Any]
) -> dict[str, Any] | None:
    if len(names) > MAX_CLASSES:
        return None
    counts = np.zeros((len(names), len(names)), np.int64)
    np.add.at(counts, (targets.astype(np.intp), answers.argmax(axis=1)), 1)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    cells = [
        list(zip(line, shade, strict=True))
        for line, shade in zip(counts.tolist(), (100 * shares).round().tolist(), strict=True)
    ]
    return {
        "caption": f"{len(targets):,} test rows: each line a true class, each column an answer, "
        "the stronger its colour the larger its share of the line.",
        "names": names,
        "rows": list(zip(names, cells, strict=True)),
    }


def _summary(comparisons: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for each file in each engine.

    The error is that on held-out rows where there are any: on rows that are spread by 1e9 it is
    large as the answers are, and says nothing.
    """
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for comparison in comparisons:
        groups[comparison["artifact"], comparison["engine"]].append(comparison)
    return [
        {
            "artifact": artifact,
            "engine": engine,
            "count": len(rows),
            "error": max(row["max_error"] for row in _held_out(rows) or rows),
            "headroom": _headroom(max(row["bound_used"] for row in rows)),
            "verdict": "agrees" if all(r["verdict"] == "passed" for r in rows) else "DIFFERS",
        }
        for (artifact, engine), rows in groups.items()
    ]


def _held_out(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [row for row in rows if row["case"].startswith("held-out rows")]


def _headroom(used: float) -> str:
    """What is left of a bound of which so much is used."""
    return f"{100 * (1 - used):.3g} %" if used <= 1 else f"none: {used:.3g} times the bound"
