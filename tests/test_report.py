"""The report: one self-contained page, every value escaped, as a browser shows it."""

import base64
import html
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from job.report.page import render_report

from .examples.browser import FLAGS, Page, chromium

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
    "place", ["headline", "sentence", "facts", "faults", "target", "classes", "files"]
)
def test_every_value_is_escaped(place: str) -> None:
    bomb = "</title></code><script>alert(1)</script>"
    changes: dict[str, Any] = {
        "facts": {"facts": {"run": bomb, bomb: bomb}},
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
    text = render_report(headline="CONFIG", sentence="No.", facts={"run": "one"})
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


@pytest.fixture(scope="module")
def browser() -> str:
    found = shutil.which("chromium")
    if found is None:
        if os.environ.get("CI"):
            pytest.fail("there is no Chromium; install it")
        pytest.skip("there is no Chromium: nobody has looked at the report")
    return found


def browse(browser: str, url: str, tmp_path: Path, *options: str) -> tuple[str, str, set[str]]:
    """The page's text after loading, the console's messages, and every address that was asked."""
    log = tmp_path / "net.json"
    done = subprocess.run(
        [
            *(browser, *FLAGS, "--dump-dom"),
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
    browser: str, published: Path, tmp_path: Path
) -> None:
    picture = tmp_path / "page.png"
    address = f"file://{published.resolve()}/report.html"
    text, console, asked = browse(browser, address, tmp_path, f"--screenshot={picture}")
    assert "Verified" in text
    assert text.count("</svg>") == 5
    assert console == ""
    assert asked == set()
    assert picture.stat().st_size > 20_000


def test_the_browser_would_have_told_of_errors_and_of_requests(
    browser: str, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text("<img src='http://127.0.0.1:9/x.png'><script>console.error('no')</script>")
    _, console, asked = browse(browser, f"file://{bad}", tmp_path)
    assert '"no"' in console
    assert "http://127.0.0.1:9/x.png" in asked


# Text against the page, and the colours of the drawings; as WCAG 2.2 reckons contrast.
CONTRASTS = """(() => {
  const parts = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255);
  const light = (colour) => parts(colour)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const page = light(getComputedStyle(document.documentElement).backgroundColor);
  const against = (colour) => {
    const [low, high] = [page, light(colour)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const written = [...document.body.querySelectorAll("*")].filter((element) =>
    [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim()));
  const texts = written.filter((element) => element.tagName !== "style").map((element) =>
    against(getComputedStyle(element)[element.namespaceURI.endsWith("svg") ? "fill" : "color"]));
  const drawn = [...document.querySelectorAll(".series :is(.dot, .rect, .line)")].map((element) =>
    getComputedStyle(element)).map((style) => against(
      style.fill === "none" || style.fillOpacity === "0" ? style.stroke : style.fill));
  return { page, texts: texts.length, text: Math.min(...texts), drawing: Math.min(...drawn) };
})()"""


def opened(page: Page, path: Path, scheme: str, width: int, media: str = "screen") -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.call("Emulation.setEmulatedMedia", media=media, features=features)
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    page.call("Emulation.setDeviceMetricsOverride", **size)
    page.call("Page.navigate", url=f"file://{path.resolve()}")
    page.wait_for("document.readyState === 'complete' && document.querySelector('h1') !== null")


@pytest.fixture(scope="module")
def tab(browser: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(scope="module", params=["numbers", "classes", "failed"])
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("report") / "report.html"
    kinds: dict[str, dict[str, Any]] = {
        "numbers": {},
        "classes": {
            "signature": SIGNATURE | {"task": "classification", "outputs": CLASSES},
            "answers": np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]]),
        },
        "failed": {
            "headline": "MISMATCH (81)",
            "verification": VERIFICATION | {"faults": ["model.onnx is wrong"]},
        },
    }
    path.write_text(page(**kinds[request.param], good=request.param != "failed"))
    return path


@pytest.mark.parametrize(
    ("scheme", "media"), [("light", "screen"), ("dark", "screen"), ("dark", "print")]
)
def test_all_of_it_can_be_read_in_light_and_dark_and_printed(
    tab: Page, report: Path, scheme: str, media: str
) -> None:
    opened(tab, report, scheme, 1000, media)
    seen = tab.evaluate(CONTRASTS)
    paper = media == "print" or scheme == "light"
    assert seen["page"] == 1 if paper else seen["page"] < 0.05
    assert seen["texts"] > 50
    assert seen["text"] >= 4.5
    assert seen["drawing"] >= 3


def test_a_phone_shows_all_of_its_width(tab: Page, report: Path) -> None:
    opened(tab, report, "light", 375)
    assert tab.evaluate("document.documentElement.scrollWidth") == 375
    hidden = """Math.max(...[...document.querySelectorAll('table')].map((e) =>
      e.scrollWidth - e.clientWidth))"""
    assert tab.evaluate(hidden) == 0
    right = """Math.max(...[...document.querySelectorAll('svg')].map((e) =>
      e.getBoundingClientRect().right))"""
    assert tab.evaluate(right) <= 375
    least = """Math.min(...[...document.querySelectorAll('svg')].map((e) =>
      14 * e.getBoundingClientRect().width / e.viewBox.baseVal.width))"""
    assert tab.evaluate(least) >= 9  # pixels that letters in a drawing are high


def test_no_text_of_a_drawing_is_cut_off(tab: Page, report: Path) -> None:
    opened(tab, report, "light", 1000)
    outside = """[...document.querySelectorAll('svg text')].filter((text) => {
      const [a, b] = [text, text.ownerSVGElement].map((e) => e.getBoundingClientRect());
      const shown = a.width && getComputedStyle(text).visibility === 'visible';
      return shown && (a.left < b.left - 1 || a.right > b.right + 1 || a.bottom > b.bottom + 1);
    }).map((text) => text.textContent)"""
    assert tab.evaluate(outside) == []
    assert tab.evaluate("document.querySelectorAll('svg text').length") > 20


def test_it_prints(tab: Page, report: Path) -> None:
    opened(tab, report, "dark", 1000)
    pdf = base64.b64decode(tab.call("Page.printToPDF", paperWidth=8.27, paperHeight=11.69)["data"])
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 8


def test_nothing_can_be_asked_for_even_by_what_got_into_it(tab: Page, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    asking = "<img src='http://127.0.0.1:9/x.png'><script>document.title = 'ran'</script>"
    path.write_text(page().replace("</body>", f"{asking}</body>"))
    opened(tab, path, "light", 1000)
    assert tab.evaluate("document.title") == "Verified: one"
    assert any("Content Security Policy" in each for each in tab.complaints)
    tab.complaints.clear()
