"""The report: one self-contained page, every value escaped, as a browser shows it."""

import html
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from job.report import render_report

from .conftest import run_job

EPOCHS = [
    {"epoch": n, "training_loss": 10 / n, "validation": {"loss": 11 / n}} for n in range(1, 31)
]
COMPARISON = {
    "artifact": "model.onnx",
    "engine": "onnxruntime",
    "case": "zeros",
    "compared": 1,
    "max_error": 1e-6,
    "bound_used": 0.25,
    "verdict": "passed",
}
VERIFICATION: dict[str, Any] = {
    "headroom": 0.75,
    "faults": [],
    "self_check": {"score": "3 of 3 wrong exports rejected", "mutants": [{}]},
    "diagnosis": None,
    "comparisons": [COMPARISON, COMPARISON | {"case": "all NaN", "bound_used": 0.0}],
}
SIGNATURE: dict[str, Any] = {
    "task": "regression",
    "inputs": [{"shape": ["batch", 2], "features": ["x1", "x2"]}],
    "outputs": [{"shape": ["batch", 1], "targets": ["y"]}],
}
CLASSES = [{"shape": ["batch", 2], "classes": ["cat", "dog"]}]


def page(**changes: Any) -> str:
    values: dict[str, Any] = {
        "headline": "Verified",
        "sentence": "All agree.",
        "run_id": "one",
        "facts": {"run": "one"},
        "epochs": EPOCHS,
        "loss": "mse",
        "floor": {"mse": 1.0},
        "metrics": {"test": {"mse": 1.5, "r2": None}},
        "signature": SIGNATURE,
        "targets": np.zeros((3, 1)),
        "answers": np.ones((3, 1)),
        "example": ([0.25, -1.0], [3.5]),
        "verification": VERIFICATION,
        "stages": {"train": 2.0, "verify": 3.0},
        "files": {"model.onnx": {"bytes": 1234, "sha256": "ab" * 32}},
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


def words(text: str) -> str:
    parser = Balanced()
    parser.feed(text)
    assert parser.open == []
    return " ".join(" ".join(parser.text).split())


def test_the_page_is_balanced_and_says_what_there_is_to_know() -> None:
    said = words(page())
    assert said.startswith("Verified: one")
    for part in (
        "2 comparisons with a float64 evaluation",
        "used 25 % of what",
        "3 of 3 wrong exports rejected",
        "r2 unknown",
        "best reachable",
        "Prediction against target: y",
        "3 test rows",
        "model.onnx 1,234 " + "ab" * 32,
        "answers 3.5",
    ):
        assert part in said


def test_the_published_page_needs_nothing_from_elsewhere(published: Path) -> None:
    text = (published / "report.html").read_text()
    links = re.findall(r"(?:src|href|url|@import|<script|https?:)[^\w ].*", text, re.IGNORECASE)
    # The name of SVG's namespace, which nobody fetches.
    assert not [link for link in links if not link.startswith("http://www.w3.org/2000/svg")]
    assert "Verified" in text


@pytest.mark.parametrize(
    "place", ["headline", "sentence", "run_id", "facts", "faults", "target", "classes", "files"]
)
def test_every_value_is_escaped(place: str) -> None:
    bomb = "</title></code><script>alert(1)</script>"
    changes: dict[str, Any] = {
        "facts": {"facts": {bomb: bomb}},
        "faults": {"verification": VERIFICATION | {"faults": [bomb]}},
        "target": {"signature": SIGNATURE | {"outputs": [{"targets": [bomb]}]}},
        "classes": {
            "signature": SIGNATURE
            | {"task": "classification", "outputs": [{"classes": [bomb, "dog"]}]},
            "answers": np.ones((3, 2)),
        },
        "files": {"files": {bomb: {"bytes": 1, "sha256": bomb}}},
    }
    assert "<script" not in page(**changes.get(place, {place: bomb}))


def test_classes_are_counted_by_truth_and_answer() -> None:
    text = page(
        signature=SIGNATURE | {"task": "classification", "outputs": CLASSES},
        targets=np.array([[0], [0], [1]]),
        answers=np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]]),
    )
    assert "cat dog cat 1 1 dog 0 1" in words(text)
    assert "Residuals" not in text


def test_one_epoch_or_a_loss_of_zero_is_drawn_too() -> None:
    flat = [{"epoch": 1, "training_loss": 0.0, "validation": {"loss": 0.0}}]
    for epochs in (EPOCHS[:1], flat):
        assert "best reachable" in page(epochs=epochs, floor={"mse": 0.0})


def test_a_failed_comparison_comes_first() -> None:
    failed = VERIFICATION | {
        "comparisons": [
            COMPARISON | {"verdict": "failed", "case": case, "bound_used": 1e300}
            for case in ("zeros", "all NaN")
        ],
        "faults": ["model.onnx is wrong"],
    }
    text = page(verification=failed)
    assert "DIFFERS" in text
    assert text.index("model.onnx is wrong") < text.index("<h2>Run</h2>")
    assert "DIFFERS" not in page()


def test_a_run_that_got_nowhere_has_a_page_too() -> None:
    text = render_report(headline="CONFIG", sentence="No.", run_id="one", facts={})
    assert "<svg" not in text
    assert "Verification" not in text


def test_names_stay_inside_the_snippets_comments() -> None:
    names = ["a\nimport os", "b\u2028c", "d\re"]
    inputs = [{"shape": ["batch", 3], "features": names}]
    text = page(signature=SIGNATURE | {"inputs": inputs}, example=([0.0] * 3, [1.0]))
    (code, *_) = re.findall(r"<code>(.*?)</code>", text, re.DOTALL)
    assert "# features: a import os, b c, d e" in html.unescape(code).splitlines()


def test_the_python_snippet_gives_the_answer_that_it_says(published: Path) -> None:
    (code, *_) = re.findall(r"<code>(.*?)</code>", (published / "report.html").read_text(), re.S)
    code = html.unescape(code)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=published, capture_output=True, text=True, check=True
    )
    (said,) = re.findall(r"# answers (\S+)", code)
    assert float(done.stdout.strip("[]\n")) == pytest.approx(float(said), rel=1e-5)


# In a real browser. -------------------------------------------------------------------------------


def browse(url: str, tmp_path: Path, *options: str) -> tuple[str, str, set[str]]:
    """The page's text after loading, the console's messages, and every address that was asked."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        if os.environ.get("CI"):
            pytest.fail("there is no Chromium; install it")
        pytest.skip("there is no Chromium: nobody has looked at the report")
    log = tmp_path / "net.json"
    done = subprocess.run(
        [
            *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"),
            *("--enable-logging=stderr", f"--log-net-log={log}", f"--user-data-dir={tmp_path}/d"),
            *options,
            url,
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    console = "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    asked = [event.get("params", {}) for event in json.loads(log.read_text())["events"]]
    # The browser's own requests have no origin.
    pages = [each for each in asked if each.get("initiator", "not an origin") != "not an origin"]
    return done.stdout, console, {each["url"] for each in pages if "url" in each}


def test_a_browser_shows_the_page_and_asks_nobody_for_anything(
    published: Path, tmp_path: Path
) -> None:
    picture = tmp_path / "page.png"
    text, console, asked = browse(
        f"file://{published.resolve()}/report.html", tmp_path, f"--screenshot={picture}"
    )
    assert "Verified" in text
    assert text.count("</svg>") == 5
    assert console == ""
    assert asked == set()
    assert picture.stat().st_size > 20_000


def test_the_browser_would_have_told_of_errors_and_of_requests(tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text("<img src='http://127.0.0.1:9/x.png'><script>console.error('no')</script>")
    _, console, asked = browse(f"file://{bad}", tmp_path)
    assert '"no"' in console
    assert "http://127.0.0.1:9/x.png" in asked


def test_a_failed_run_leaves_a_page_that_says_what_failed(tmp_path: Path) -> None:
    done = run_job(
        "train", "data.samples=2000", "train.epochs=1", "quality.metrics={r2: {min: 0.9999}}",
        "--output", str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 82
    (folder,) = (tmp_path / "failed").iterdir()
    said = words((folder / "report.html").read_text())
    assert said.startswith("QUALITY (82): nothing was published")
    assert "r2" in said
    assert json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])["epoch"] == 1
