"""The report's figures as inline SVG. Colours are the page's own, so one drawing serves any theme.

Shapes: N rows, O outputs.
"""

import itertools
import math
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pygal
from numpy.typing import NDArray
from pygal.style import Style

# pygal leaves a finder for plugins there, of which the job has none; it is of an old protocol, and
# Python 3.11 would warn of it in every import that finds nothing.
sys.meta_path[:] = [f for f in sys.meta_path if not isinstance(f, pygal.PluginImportFixer)]

_NAMES = ("one", "two", "three", "four", "five", "six", "seven", "eight")
_COLOURS = tuple(f"var(--{name})" for name in _NAMES)
_STYLE = Style(
    background="transparent",
    plot_background="transparent",
    foreground="currentColor",
    foreground_strong="currentColor",
    foreground_subtle="var(--rule)",
    guide_stroke_color="var(--rule)",
    major_guide_stroke_color="var(--rule)",
    colors=_COLOURS,
    font_family="inherit",
    label_font_size=14,
    major_label_font_size=14,
    legend_font_size=14,
    title_font_size=14,
    opacity="1",
    stroke_width="2",
    transition="0s",
)
# Shares of a bound beyond these are drawn as these: an error of 0 has no logarithm.
LEAST, MOST = 1e-6, 1e3


def loss_by_epoch(
    epochs: Sequence[Mapping[str, Any]], floor: float | None, loss: str | None = None
) -> str:
    """Training and validation loss, and the best that any model can reach where it is known."""
    chart = _chart(
        pygal.XY,
        x_title="epoch",
        y_title=loss or "loss",
        x_value_formatter=lambda v: f"{v:.0f}",
        dots_size=2,
        height=350,
        margin_bottom=45,
        legend_at_bottom=True,
        legend_at_bottom_columns=2,
        truncate_legend=-1,
    )
    numbers = [epoch["epoch"] for epoch in epochs]
    chart.x_labels = numbers[:: -(-len(numbers) // 10)]
    chart.add("training", [(e["epoch"], e["training_loss"]) for e in epochs])
    chart.add("validation", [(e["epoch"], e["validation"]["loss"]) for e in epochs])
    if floor is not None:
        ends = (numbers[0], numbers[-1])
        name = f"noise floor, the best reachable: {floor:.4g}"
        chart.add(name, [(end, floor) for end in ends], show_dots=False)
    return _svg(chart)


def answers_by_target(targets: NDArray[Any], answers: NDArray[Any]) -> str:
    """Each answer (N,) over its target (N,), and the line on which they are equal."""
    chart = _chart(
        pygal.XY, x_title="target", y_title="prediction", dots_size=1.5, show_legend=False
    )
    ends = [float(f(targets)) for f in (np.min, np.max)]
    chart.add("rows", list(zip(targets.tolist(), answers.tolist(), strict=True)), stroke=False)
    chart.add("equal", [(end, end) for end in ends], show_dots=False)
    return _svg(chart)


def residuals(errors: NDArray[Any]) -> str:
    """How often prediction - target (N,) is how large."""
    chart = _chart(
        pygal.Histogram, x_title="prediction - target", y_title="rows", show_legend=False
    )
    # Errors that are nearly all the same leave no room for bars between them.
    apart = float(np.ptp(errors)) > 1e-9 * float(np.abs(errors).max())
    counts, edges = np.histogram(errors, bins=40 if apart else 1)
    bars = zip(counts.tolist(), edges[:-1].tolist(), edges[1:].tolist(), strict=True)
    chart.add("rows", list(bars))
    return _svg(chart)


def share_of_bound(comparisons: Sequence[Mapping[str, Any]]) -> str | None:
    """The largest error of every engine on every input, as a share of its bound, logarithmic.

    None where no engine has answered more than one input.
    """
    used: dict[str, dict[str, float]] = defaultdict(dict)
    for c in comparisons:
        if c["compared"]:
            of_engine = used[c["engine"]]
            of_engine[c["case"]] = max(c["bound_used"], of_engine.get(c["case"], 0.0))
    engines = {name: by_case for name, by_case in used.items() if len(by_case) > 1}
    if not engines:
        return None
    cases = list(dict.fromkeys(case for by_case in engines.values() for case in by_case))[::-1]
    chart = _chart(
        pygal.HorizontalLine,
        height=170 + 19 * len(cases),
        stroke=False,
        legend_at_bottom=True,
        legend_at_bottom_columns=1,
        margin_right=30,
        value_formatter=lambda power: f"{100 * 10**power:.6g} %",
        truncate_legend=-1,
        truncate_label=-1,
    )
    chart.x_labels = cases
    # Where engines agree to the last bit, each dot lies on a larger one: the first is on top.
    for size, (name, by_case) in zip(itertools.count(3), engines.items(), strict=False):
        shares = [math.log10(np.clip(by_case.get(case, np.nan), LEAST, MOST)) for case in cases]
        chart.add(name, [None if math.isnan(s) else s for s in shares], dots_size=size)
    over = [s for by_case in engines.values() for s in by_case.values() if s > 1]
    chart.y_labels = [-6, -4, -2, 0, *([3] if over else [])]
    return _svg(chart)


def timeline(stages: Mapping[str, float]) -> str:
    """Seconds of each stage, one after the other."""
    chart = _chart(
        pygal.HorizontalStackedBar,
        height=220,
        margin_bottom=35,
        x_title="seconds",
        legend_at_bottom=True,
        legend_at_bottom_columns=3,
        truncate_legend=-1,
        show_y_labels=False,
    )
    for name, seconds in stages.items():
        chart.add(f"{name} {seconds:.1f}", [seconds])
    return _svg(chart)


def _chart(kind: type[Any], **options: Any) -> Any:
    # As narrow as this, its text is still readable where a phone shows all of its width.
    common = {"style": _STYLE, "js": (), "width": 520, "height": 320, "margin": 5}
    return kind(**(common | options))


def _svg(chart: Any) -> str:
    """The drawing alone: without scripts, comments that name addresses, and tooltips."""
    root = chart.render_tree()
    root.set("role", "img")
    for parent in list(root.iter()):
        for child in list(parent):
            if not isinstance(child.tag, str) or child.tag.endswith(("script", "title", "desc")):
                parent.remove(child)
    ElementTree.register_namespace("", "http://www.w3.org/2000/svg")
    return ElementTree.tostring(root, encoding="unicode")
