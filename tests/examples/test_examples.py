"""Each example, copied out, on a model that was just trained; and on one that is wrong.

What an example needs is installed from its own pinned list. Without the registry, the compiler or
the browser its test is skipped with the reason, or fails where CI is set.
"""

import html
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from tests.conftest import ROOT

from .browser import Page, chromium

EXAMPLES = ROOT / "examples"
NAMES = ("python-onnxruntime", "python-pt2", "cpp-libtorch", "node")
ARGUMENTS = " PUBLISHED_FOLDER [FEATURE ...]"
ROW = [f"{0.1 * n:.1f}" for n in range(1, 11)]


def need(program: str) -> None:
    if shutil.which(program) is None:
        assert "CI" not in os.environ, f"there is no {program}"
        pytest.skip(f"there is no {program}")


def prepare(command: str, folder: Path, path: Path | None = None) -> None:
    """Runs a line of a README, programs looked for in `path` first."""
    done = bash(command, folder, path)
    if done.returncode != 0 and "CI" not in os.environ:
        pytest.skip(f"{command}: {done.stderr[-500:]}")
    assert done.returncode == 0, done.stdout + done.stderr


def bash(command: str, folder: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    places = os.environ["PATH"] if path is None else f"{path}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-euc", command],
        cwd=folder,
        env={**os.environ, "PATH": places, "PYTHONUNBUFFERED": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def told(folder: Path) -> list[str]:
    """The commands of its README."""
    block = re.search(r"```console\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert block is not None
    return block[1].splitlines()


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("examples")
    for name in (*NAMES, "browser"):
        ignored = shutil.ignore_patterns("node_modules", "build", "model")
        shutil.copytree(EXAMPLES / name, folder / name, ignore=ignored)
    return folder


class Example(NamedTuple):
    """A copied example that is ready to run."""

    name: str
    folder: Path
    command: str  # without the published folder and the features
    path: Path | None

    def run(self, published: Path, *features: str) -> subprocess.CompletedProcess[str]:
        return bash(
            shlex.join([*shlex.split(self.command), str(published), *features]),
            self.folder,
            self.path,
        )


@pytest.fixture(scope="module", params=NAMES)
def example(
    request: pytest.FixtureRequest, copies: Path, tmp_path_factory: pytest.TempPathFactory
) -> Example:
    """As its README says, in an environment that has what it asks for."""
    name, folder = request.param, copies / request.param
    *before, last = told(folder)
    path: Path | None = Path(sys.executable).parent
    if name == "python-onnxruntime":
        fresh = tmp_path_factory.mktemp("venv")
        prepare(f"{shlex.quote(sys.executable)} -m venv {fresh}", folder)
        path = fresh / "bin"
    elif name == "node":
        need("npm")
        path = None
    elif name == "cpp-libtorch":
        need("cmake")
        need("c++")
    for command in before:
        if name == "python-pt2":  # torch is here already, and pip says whether it is the pinned one
            command = f"PIP_NO_INDEX=1 {command}"
        prepare(command.replace("LIBTORCH", torch.utils.cmake_prefix_path), folder, path)
    assert last.endswith(ARGUMENTS)
    return Example(name, folder, last.removesuffix(ARGUMENTS), path)


def answer_to(published: Path, row: list[str]) -> float:
    model = torch.export.load(published / "model.pt2").module()
    return float(model(torch.tensor([[float(value) for value in row]])).detach())


def test_it_agrees_with_the_golden_vectors_and_answers_a_row(
    example: Example, published: Path
) -> None:
    done = example.run(published, *ROW)
    assert done.returncode == 0, done.stderr
    rows = len(np.load(published / "golden" / "input.npy"))
    assert f"golden vectors: {rows} rows agree" in done.stdout
    found = re.search(r"^answer: (\S+)$", done.stdout, re.MULTILINE)
    assert found is not None
    assert float(found[1]) == pytest.approx(answer_to(published, ROW), rel=1e-4)


def test_without_features_it_answers_the_first_golden_row(
    example: Example, published: Path
) -> None:
    done = example.run(published)
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
    example: Example, which: int, published: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "wrong"
    shutil.copytree(published, folder)
    WRONG[example.name][which](folder)
    done = example.run(folder, *ROW)
    assert done.returncode == 1, done.stdout
    assert "golden vectors: the largest error is" in done.stderr
    assert "answer" not in done.stdout


def test_without_arguments_it_says_what_it_takes(example: Example) -> None:
    done = bash(example.command, example.folder, example.path)
    assert done.returncode == 1
    assert "PUBLISHED_FOLDER" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("example", ["python-onnxruntime"], indirect=True)
def test_onnxruntime_needs_no_torch(example: Example) -> None:
    done = bash("python -c 'import torch'", example.folder, example.path)
    assert "No module named 'torch'" in done.stderr


# The report's lines for each: the file they go into, what runs it, and how exactly it prints.
SNIPPETS = {
    "cpp-libtorch": ("predict.cpp", "{}/build/predict", 1e-4),
    "node": ("snippet.mjs", "node {}/snippet.mjs", 1e-5),
}


@pytest.mark.parametrize("example", SNIPPETS, indirect=True)
def test_the_reports_lines_give_the_answer_that_they_say(example: Example, published: Path) -> None:
    blocks = re.findall(r"<code>(.*?)</code>", (published / "report.html").read_text(), re.DOTALL)
    _, *others = map(html.unescape, blocks)  # tests/test_report.py runs Python's
    code = others[list(SNIPPETS).index(example.name)]
    name, command, precision = SNIPPETS[example.name]
    folder = example.folder  # where its modules are, or cmake's settings, which take long to find
    before = [folder / "predict.cpp", folder / "build" / "predict"]
    kept = {path: path.read_bytes() for path in before if path.exists()}
    (folder / name).write_text(code)
    try:
        if example.name == "cpp-libtorch":
            prepare("cmake --build build", folder)
        done = bash(command.format(shlex.quote(str(folder))), published, example.path)
    finally:
        for path, content in kept.items():
            path.write_bytes(content)
    assert done.returncode == 0, done.stderr
    said = re.search(r"answers (\S+)", code)
    answer = re.search(r"-?\d+\.\d+(e[+-]?\d+)?", done.stdout)
    assert said is not None
    assert answer is not None
    assert float(answer[0]) == pytest.approx(float(said[1]), rel=precision)


def test_the_pins_are_the_jobs_own() -> None:
    lock = (ROOT / "requirements" / "cpu.txt").read_text()
    cmake = (EXAMPLES / "cpp-libtorch" / "CMakeLists.txt").read_text()
    pinned = re.search(r"find_package\(Torch (\S+) EXACT REQUIRED\)", cmake)
    assert pinned is not None
    assert re.search(rf"^torch=={re.escape(pinned[1])}(\+cpu)? ", lock, re.MULTILINE)
    for name in ("python-onnxruntime", "python-pt2"):
        for line in (EXAMPLES / name / "requirements.txt").read_text().split():
            assert re.search(rf"^{re.escape(line)}(\+cpu)? ", lock, re.MULTILINE), line


def test_both_javascript_examples_read_npy_alike() -> None:
    assert (EXAMPLES / "node" / "npy.js").read_text() == (
        EXAMPLES / "browser" / "npy.js"
    ).read_text()


# The page in a browser.


@pytest.fixture(scope="module")
def site(copies: Path, published: Path) -> Iterator[tuple[Path, str]]:
    need("npm")
    need("chromium")
    folder = copies / "browser"
    *before, serve = told(folder)
    for command in before:
        prepare(command.replace("PUBLISHED_FOLDER", str(published)), folder)
    words = shlex.split(serve)
    assert words.pop() == "8000"  # which may be taken here: 0 is any that is free
    server = subprocess.Popen(
        [words[0], "-u", *words[1:], "0"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert server.stdout is not None
    told_address = re.search(r"http://127\.0\.0\.1:\d+/", server.stdout.readline())
    assert told_address is not None
    yield folder, told_address[0]
    server.terminate()
    server.wait(30)
    server.stdout.close()


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
