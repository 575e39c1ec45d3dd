"""The report: one self-contained page, every value escaped."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from job.report import render_report

EPOCHS = [
    {"epoch": n, "training_loss": 10 / n, "validation": {"loss": 11 / n}} for n in range(1, 31)
]
COMPARISON = {
    "artifact": "model.onnx",
    "engine": "onnxruntime",
    "case": "zeros",
    "max_error": 1e-6,
    "bound_used": 0.25,
    "verdict": "passed",
}
VERIFICATION: dict[str, Any] = {
    "headroom": 0.75,
    "faults": [],
    "self_check": {"score": "3 of 3 wrong exports rejected", "mutants": [{}]},
    "diagnosis": None,
    "comparisons": [COMPARISON],
}


def page(**changes: Any) -> str:
    values: dict[str, Any] = {
        "headline": "Verified",
        "sentence": "All agree.",
        "run_id": "one",
        "facts": {"run": "one"},
        "epochs": EPOCHS,
        "floor": 1.0,
        "metrics": {"test": {"mse": 1.5, "r2": None}},
        "verification": VERIFICATION,
    }
    return render_report(**(values | changes))


class Balanced(HTMLParser):
    """Fails on a tag that is not closed where it should be."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_is_balanced_and_says_the_verdict() -> None:
    parser = Balanced()
    parser.feed(page())
    assert parser.open == []
    words = " ".join(" ".join(parser.text).split())
    assert words.startswith("Verified: one")
    assert "1 comparisons with a float64 evaluation" in words
    assert "used 25 % of what" in words
    assert "r2 unknown" in words
    assert "best reachable" in words


def test_the_published_page_needs_nothing_from_elsewhere(published: Path) -> None:
    text = (published / "report.html").read_text()
    assert not re.search(r"(src|href|url|@import|<script|https?:)\W", text, re.IGNORECASE)
    assert "Verified" in text


@pytest.mark.parametrize("place", ["headline", "sentence", "run_id", "facts", "faults"])
def test_every_value_is_escaped(place: str) -> None:
    bomb = "<script>alert(1)</script>"
    changes: dict[str, Any] = {place: bomb}
    if place == "facts":
        changes = {"facts": {bomb: bomb}}
    if place == "faults":
        changes = {"verification": VERIFICATION | {"faults": [bomb]}}
    assert "<script" not in page(**changes)


def test_the_curve_has_a_point_for_every_epoch_inside_the_picture() -> None:
    text = page()
    assert text.count("<circle") == 2 * len(EPOCHS)
    ys = [float(y) for y in re.findall(r'cy="([\d.-]+)"', text)]
    assert min(ys) >= 0
    assert max(ys) <= 260


def test_one_epoch_or_a_loss_of_zero_is_drawn_too() -> None:
    assert page(epochs=EPOCHS[:1], floor=None).count("<circle") == 2
    flat = [{"epoch": 1, "training_loss": 0.0, "validation": {"loss": 0.0}}]
    assert page(epochs=flat, floor=0.0).count("<circle") == 2


def test_a_failed_comparison_shows() -> None:
    failed = VERIFICATION | {"comparisons": [COMPARISON | {"verdict": "failed"}]}
    assert "DIFFERS" in page(verification=failed)
    assert "DIFFERS" not in page()


def test_a_run_that_got_nowhere_has_a_page_too() -> None:
    text = page(epochs=[], floor=None, metrics=None, verification=None)
    assert "<svg" not in text
    assert "Verification" not in text
