"""report.html: one self-contained page about a run, from plain values."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 640, 260, 60, 30

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ headline }}: {{ run_id }}</title>
<style>
:root { color-scheme: light dark; --line: light-dark(#0b62c4, #6cb2ff);
        --other: light-dark(#b3540a, #ffb066); --rule: light-dark(#bbb, #555); }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { text-align: left; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid var(--rule);
         vertical-align: top; }
td.n { text-align: right; font-variant-numeric: tabular-nums; }
svg { max-width: 100%; height: auto; } svg text { fill: currentColor; font-size: 12px; }
</style>
</head>
<body>
<h1>{{ headline }}</h1>
<p>{{ sentence }}</p>
<h2>Run</h2>
<table>
{% for name, value in facts.items() %}<tr><th>{{ name }}</th><td>{{ value }}</td></tr>
{% endfor %}</table>
{% if curve %}<h2>Loss by epoch</h2>
<svg viewBox="0 0 {{ width }} {{ height }}" role="img" aria-label="Loss by epoch">
<line x1="{{ left }}" y1="{{ curve.bottom }}" x2="{{ width }}" y2="{{ curve.bottom }}"
      stroke="var(--rule)"/>
{% for y, label in curve.ticks %}<text x="{{ left - 6 }}" y="{{ y + 4 }}" text-anchor="end">
{{ label }}</text><line x1="{{ left }}" y1="{{ y }}" x2="{{ width }}" y2="{{ y }}"
      stroke="var(--rule)" stroke-dasharray="2 4"/>
{% endfor %}{% for x, label in curve.epochs %}<text x="{{ x }}" y="{{ height - 8 }}"
      text-anchor="middle">{{ label }}</text>
{% endfor %}{% for line in curve.lines %}<polyline points="{{ line.points }}" fill="none"
      stroke="var({{ line.colour }})" stroke-width="2"/>{% for x, y in line.dots %}
<circle cx="{{ x }}" cy="{{ y }}" r="3" fill="var({{ line.colour }})"/>{% endfor %}
<text x="{{ width - 4 }}" y="{{ line.legend }}" text-anchor="end"
      style="fill: var({{ line.colour }})">{{ line.name }}</text>
{% endfor %}{% if curve.floor is not none %}<line x1="{{ left }}" y1="{{ curve.floor }}"
      x2="{{ width }}" y2="{{ curve.floor }}" stroke="currentColor"/>
<text x="{{ width - 4 }}" y="{{ curve.floor - 5 }}" text-anchor="end">best reachable</text>
{% endif %}</svg>
{% endif %}{% if metrics %}<h2>Metrics</h2>
<table>
<tr><th></th>{% for split in metrics %}<th>{{ split }}</th>{% endfor %}</tr>
{% for name in metrics.test %}<tr><th>{{ name }}</th>{% for split in metrics %}
<td class="n">{{ number(metrics[split][name]) }}</td>{% endfor %}</tr>
{% endfor %}</table>
{% endif %}{% if verification %}<h2>Verification</h2>
<p>{{ verification.comparisons | length }} comparisons with a float64 evaluation of the trained
model. The largest error used {{ "%.2g" | format(100 * (1 - verification.headroom)) }} % of what
float32 arithmetic may be off by.{% if verification.self_check.mutants %} The verifier was shown
wrong exports of this very model: {{ verification.self_check.score }}.{% endif %}</p>
{% if verification.diagnosis %}<p>{{ verification.diagnosis.sentence }} The input is in
failing_input.npy.</p>
{% endif %}{% if verification.faults %}<ul>
{% for fault in verification.faults %}<li>{{ fault }}</li>
{% endfor %}</ul>{% endif %}<table>
<tr><th>file</th><th>engine</th><th>comparisons</th><th>largest error</th><th>of its bound</th>
<th>verdict</th></tr>
{% for row in summary %}<tr><td>{{ row.artifact }}</td><td>{{ row.engine }}</td>
<td class="n">{{ row.count }}</td><td class="n">{{ "%.3g" | format(row.error) }}</td>
<td class="n">{{ "%.2g" | format(100 * row.used) }} %</td><td>{{ row.verdict }}</td></tr>
{% endfor %}</table>
{% endif %}</body>
</html>
"""


def render_report(
    *,
    headline: str,
    sentence: str,
    run_id: str,
    facts: Mapping[str, object],
    epochs: Sequence[Mapping[str, Any]] = (),
    floor: float | None = None,
    metrics: Mapping[str, Mapping[str, float | None]] | None = None,
    verification: Mapping[str, Any] | None = None,
) -> str:
    """The page as HTML, every value escaped.

    `epochs` are the lines of metrics.jsonl, `floor` the best reachable loss, `verification` what
    verification.json holds.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(_PAGE).render(
        headline=headline,
        sentence=sentence,
        run_id=run_id,
        facts=facts,
        curve=_curve(epochs, floor) if epochs else None,
        metrics=metrics,
        verification=verification,
        summary=_summary(verification["comparisons"]) if verification else [],
        number=lambda value: "unknown" if value is None else f"{value:.6g}",
        width=_WIDTH,
        height=_HEIGHT,
        left=_LEFT,
    )


def _curve(epochs: Sequence[Mapping[str, Any]], floor: float | None) -> dict[str, Any]:
    """Training and validation loss by epoch as SVG coordinates."""
    series = {
        "training": [epoch["training_loss"] for epoch in epochs],
        "validation": [epoch["validation"]["loss"] for epoch in epochs],
    }
    values = [v for line in series.values() for v in line] + ([floor] if floor else [])
    low, high = min(0.0, *values), max(values) * 1.05 or 1.0
    bottom = _HEIGHT - _BOTTOM

    def x_of(index: int) -> float:
        return round(_LEFT + 20 + (_WIDTH - _LEFT - 40) * index / max(len(epochs) - 1, 1), 1)

    def y_of(value: float) -> float:
        height: float = (bottom - 10) * (value - low) / (high - low)
        return round(bottom - height, 1)

    lines = []
    for (name, line), colour, legend in zip(
        series.items(), ("--line", "--other"), (20, 36), strict=True
    ):
        dots = [(x_of(i), y_of(value)) for i, value in enumerate(line)]
        points = " ".join(f"{x},{y}" for x, y in dots)
        lines.append(
            {"name": name, "colour": colour, "legend": legend, "dots": dots, "points": points}
        )
    ticks = [low + (high - low) * part / 4 for part in range(5)]
    every = -(-len(epochs) // 10)
    return {
        "lines": lines,
        "bottom": bottom,
        "ticks": [(y_of(tick), f"{tick:.3g}") for tick in ticks],
        "epochs": [(x_of(i), epochs[i]["epoch"]) for i in range(0, len(epochs), every)],
        "floor": None if floor is None else y_of(floor),
    }


def _summary(comparisons: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for each file in each engine."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for comparison in comparisons:
        groups[comparison["artifact"], comparison["engine"]].append(comparison)
    return [
        {
            "artifact": artifact,
            "engine": engine,
            "count": len(rows),
            "error": max(
                (row["max_error"] for row in rows if not row["case"].startswith("scale")), default=0
            ),
            "used": max(row["bound_used"] for row in rows),
            "verdict": "agrees" if all(r["verdict"] == "passed" for r in rows) else "DIFFERS",
        }
        for (artifact, engine), rows in groups.items()
    ]
