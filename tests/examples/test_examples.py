"""Each example, copied out, on a model that was just trained; and on one that is wrong.

What an example needs is installed from its own pinned list. Without the registry, the compiler or
the browser its test is skipped with the reason, or fails where CI is set.
"""

import functools
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from tests.conftest import ROOT

from .browser import Page, chromium

EXAMPLES = ROOT / "examples"
NAMES = ("python-onnxruntime", "python-pt2", "cpp-libtorch", "node")
ROW = [f"{0.1 * n:.1f}" for n in range(1, 11)]


def need(program: str) -> None:
    if shutil.which(program) is None:
        assert "CI" not in os.environ, f"there is no {program}"
        pytest.skip(f"there is no {program}")


def prepare(command: list[str], cwd: Path) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode != 0 and "CI" not in os.environ:
        pytest.skip(f"{command[0]}: {done.stderr[-500:]}")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("examples")
    for name in (*NAMES, "browser"):
        ignored = shutil.ignore_patterns("node_modules", "build", "model")
        shutil.copytree(EXAMPLES / name, folder / name, ignore=ignored)
    return folder


@pytest.fixture(scope="module", params=NAMES)
def example(request: pytest.FixtureRequest, copies: Path) -> tuple[str, list[str]]:
    """Its name, and the command that takes a published folder and features."""
    name, folder = request.param, copies / request.param
    if name.startswith("python"):
        return name, [sys.executable, str(folder / "predict.py")]
    if name == "node":
        need("npm")
        prepare(["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"], folder)
        return name, ["node", str(folder / "predict.js")]
    need("cmake")
    need("c++")
    where = f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}"
    prepare(["cmake", "-B", "build", where], folder)
    prepare(["cmake", "--build", "build"], folder)
    return name, [str(folder / "build" / "predict")]


def run(command: list[str], folder: Path, *features: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command, str(folder), *features], capture_output=True, text=True, check=False
    )


def answer_to(published: Path, row: list[str]) -> float:
    model = torch.export.load(published / "model.pt2").module()
    return float(model(torch.tensor([[float(value) for value in row]])).detach())


def test_it_agrees_with_the_golden_vectors_and_answers_a_row(
    example: tuple[str, list[str]], published: Path
) -> None:
    done = run(example[1], published, *ROW)
    assert done.returncode == 0, done.stderr
    rows = len(np.load(published / "golden" / "input.npy"))
    assert f"golden vectors: {rows} rows agree" in done.stdout
    found = re.search(r"^answer: (\S+)$", done.stdout, re.MULTILINE)
    assert found is not None
    assert float(found[1]) == pytest.approx(answer_to(published, ROW), rel=1e-4)


def test_without_features_it_answers_the_first_golden_row(
    example: tuple[str, list[str]], published: Path
) -> None:
    done = run(example[1], published)
    found = re.search(r"^answer: (\S+)$", done.stdout, re.MULTILINE)
    assert found is not None
    first = np.load(published / "golden" / "output.npy")[0, 0]
    assert float(found[1]) == pytest.approx(first, rel=1e-4)


def onnx_weight_off(folder: Path) -> None:
    model = onnx.load(folder / "model.onnx")
    for each in model.graph.initializer:
        value = numpy_helper.to_array(each).copy()
        if value.ndim == 2:
            value.flat[0] += 1e-2
            each.CopyFrom(numpy_helper.from_array(value, each.name))
            break
    else:
        raise AssertionError("no weights in the file")
    onnx.save(model, folder / "model.onnx")


def onnx_nan(folder: Path) -> None:
    model = onnx.load(folder / "model.onnx")
    for each in model.graph.initializer:
        value = numpy_helper.to_array(each).copy()
        if value.ndim == 2:
            value.flat[0] = np.nan
            each.CopyFrom(numpy_helper.from_array(value, each.name))
    onnx.save(model, folder / "model.onnx")


def torchscript_weight_off(folder: Path) -> None:
    model = torch.jit.load(str(folder / "model.torchscript.pt"))  # type: ignore[no-untyped-call]
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1e-2
    torch.jit.save(model, str(folder / "model.torchscript.pt"))


def torchscript_nan(folder: Path) -> None:
    model = torch.jit.load(str(folder / "model.torchscript.pt"))  # type: ignore[no-untyped-call]
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] = np.nan
    torch.jit.save(model, str(folder / "model.torchscript.pt"))


def pt2_changed(folder: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    program = torch.export.load(folder / "model.pt2")
    for name, value in program.state_dict.items():
        if value.ndim == 2:
            program.state_dict[name] = torch.nn.Parameter(change(value.detach().clone()))
            break
    torch.export.save(program, folder / "model.pt2")


def pt2_weight_off(folder: Path) -> None:
    def change(value: torch.Tensor) -> torch.Tensor:
        value[0, 0] += 1e-2
        return value

    pt2_changed(folder, change)


def pt2_nan(folder: Path) -> None:
    pt2_changed(folder, lambda value: value.fill_(np.nan))


WRONG = {
    "python-onnxruntime": (onnx_weight_off, onnx_nan),
    "node": (onnx_weight_off, onnx_nan),
    "cpp-libtorch": (torchscript_weight_off, torchscript_nan),
    "python-pt2": (pt2_weight_off, pt2_nan),
}


@pytest.mark.filterwarnings("ignore:.*Please switch to `torch.export`:DeprecationWarning")
@pytest.mark.parametrize("which", [0, 1], ids=["one weight off", "nan"])
def test_a_wrong_model_ends_with_1(
    example: tuple[str, list[str]], which: int, published: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "wrong"
    shutil.copytree(published, folder)
    WRONG[example[0]][which](folder)
    done = run(example[1], folder, *ROW)
    assert done.returncode == 1, done.stdout
    assert "golden vectors: the largest error is" in done.stderr
    assert "answer" not in done.stdout


def test_the_pins_of_python_are_the_jobs_own() -> None:
    lock = (ROOT / "requirements" / "cpu.txt").read_text()
    for name in ("python-onnxruntime", "python-pt2"):
        for line in (EXAMPLES / name / "requirements.txt").read_text().split():
            assert re.search(rf"^{re.escape(line)}(\+cpu)? ", lock, re.MULTILINE), line


def test_both_javascript_examples_read_npy_alike() -> None:
    assert (EXAMPLES / "node" / "npy.js").read_text() == (
        EXAMPLES / "browser" / "npy.js"
    ).read_text()


# The page in a browser.


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def site(copies: Path, published: Path) -> Iterator[tuple[Path, str]]:
    need("npm")
    need("chromium")
    folder = copies / "browser"
    prepare(["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"], folder)
    shutil.copytree(published, folder / "model")
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
        thread.join()


@pytest.fixture
def page(site: tuple[Path, str], tmp_path: Path) -> Iterator[Page]:
    with chromium(tmp_path / "profile") as page:
        yield page


def verdict(page: Page, address: str) -> str:
    page.call("Page.navigate", url=address)
    script = "(document.getElementById('verdict') ?? {textContent: 'loading'}).textContent"
    page.wait_for(f"{script} !== 'loading'")
    return str(page.evaluate(script))


def test_features_are_typed_in_and_the_answer_is_seen(
    site: tuple[Path, str], page: Page, published: Path
) -> None:
    assert "rows agree" in verdict(page, site[1])
    before = page.wait_for("document.getElementById('answer').textContent")
    for n, value in enumerate(ROW):
        page.type_into(f"label:nth-of-type({n + 1}) input", value)
    page.wait_for(f"document.getElementById('answer').textContent !== {before!r}")
    name, _, got = page.evaluate("document.getElementById('answer').textContent").partition(": ")
    assert name == "y"
    assert float(got) == pytest.approx(answer_to(published, ROW), rel=1e-4)
    assert page.complaints == []
    assert page.requests
    # data: the page's own empty icon; blob: what onnxruntime made of its own files.
    assert all(r.startswith((site[1], "data:", f"blob:{site[1]}")) for r in page.requests)


def test_a_page_does_not_use_a_wrong_model(site: tuple[Path, str], page: Page) -> None:
    right = (site[0] / "model" / "model.onnx").read_bytes()
    try:
        onnx_weight_off(site[0] / "model")
        assert "the model is not used: golden vectors" in verdict(page, site[1])
        assert page.evaluate("document.getElementById('form').hidden") is True
    finally:
        (site[0] / "model" / "model.onnx").write_bytes(right)
