"""The house keeps its walls: who may import whom, and that importing does nothing."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import ROOT, SMALL

BASE = {"errors", "log", "streams", "interrupt", "durable", "config"}
# What each room may import of the package, besides itself.
MAY_IMPORT = {
    "errors": set(),
    "log": set(),
    "clock": set(),
    "streams": set(),
    "durable": set(),
    "torchscript": set(),
    "interrupt": {"errors"},
    "forkserver": {"errors", "interrupt"},
    "config": {"errors"},
    "manifest": {"errors"},
    "table": {"errors"},
    "ranks": {"errors", "interrupt"},
    "device": {"errors", "config", "ranks"},
    "identity": {"errors", "config", "device", "manifest"},
    "data": BASE | {"manifest", "table"},
    "model": BASE,
    "optim": BASE,
    "quality": {"errors", "config"},
    "train": BASE | {"torchscript", "data", "model", "optim", "ranks"},
    "export": BASE | {"torchscript", "model"},
    "verify": {"errors", "durable", "torchscript", "manifest", "forkserver"},
    "report": {"errors"},
    "publish": {"errors", "log", "interrupt", "durable", "manifest"},
    "predict": {"errors", "log", "durable", "manifest", "table", "verify"},
    "doctor": {"errors", "config", "device", "identity", "publish"},
    "export_worker": {"errors", "config", "model", "export", "verify"},
    "record": None,  # all of the above
    "artifacts": None,
    "preflight": None,
    "pipeline": None,
    "cli": None,
    "__main__": {"cli", "interrupt"},
    "__init__": set(),
}
# The assemblers, lowest first: each may import all rooms above, and those before it here.
ASSEMBLERS = ["record", "artifacts", "preflight", "pipeline", "cli", "__main__"]

FILES = sorted((ROOT / "job").rglob("*.py"))


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


def imports_of(path: Path) -> set[str]:
    """Rooms of the package that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            if node.module == "job":
                found |= {f"job.{a.name}" for a in node.names}
            else:
                found.add(str(node.module))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= set(re.findall(r"^(job(?:\.\w+)+):\w", node.value))  # what a worker makes
    return {room_of(name) for name in found if name == "job" or name.startswith("job.")}


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_a_file_imports_only_what_its_room_may(path: Path) -> None:
    room = room_of(module_of(path))
    allowed = MAY_IMPORT[room]
    if allowed is None:
        above = ASSEMBLERS[ASSEMBLERS.index(room) :]
        allowed = MAY_IMPORT.keys() - set(above)
    imported = imports_of(path) - {room, "__init__"}
    assert imported <= allowed, f"{room} may not import {sorted(imported - allowed)}"


def test_there_is_no_room_for_odds_and_ends() -> None:
    names = {path.stem for path in FILES}
    assert not names & {"utils", "util", "common", "helpers", "misc"}


def test_the_story_is_short() -> None:
    story = ast.parse((ROOT / "job" / "pipeline.py").read_text())
    for function in ast.walk(story):
        if isinstance(function, ast.FunctionDef):
            assert function.end_lineno is not None
            assert function.end_lineno - function.lineno < 45, function.name


# Imports what others have made once, and then each module in a process of its own that knows
# nothing of the package; what that prints, and its traceback, goes to a file.
PROBE = """
import importlib, os, random, sys, threading, traceback
import numpy, onnx, onnxruntime, pydantic, pygal, safetensors.torch, torch, yaml

def look(module):
    written = []
    wanted = os.O_WRONLY | os.O_RDWR | os.O_CREAT
    def hook(event, args):
        if event == "open" and isinstance(args[0], str) and args[2] & wanted:
            written.append(args[0])
    sys.addaudithook(hook)
    before = random.getstate(), threading.active_count()
    importlib.import_module(module)
    assert (random.getstate(), threading.active_count()) == before, "seeds, or starts a thread"
    assert not written, written

for module in sys.argv[1:]:
    assert not any(name.partition(".")[0] == "job" for name in sys.modules)
    process = os.fork()
    if process == 0:
        said = os.open(module, os.O_WRONLY | os.O_CREAT)
        os.dup2(said, 1)
        os.dup2(said, 2)
        try:
            look(module)
            status = 0
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    if os.waitpid(process, 0)[1] != 0:
        print(module, "failed")
"""

MODULES = [module_of(path) for path in FILES if path.stem != "__main__"]


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file for each module, of what its import prints."""
    folder = tmp_path_factory.mktemp("imported")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROBE, *MODULES],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    (folder / "failed").write_text(done.stdout)
    return folder


@pytest.mark.parametrize("module", MODULES)
def test_importing_a_module_prints_and_writes_nothing(module: str, imported: Path) -> None:
    assert (imported / module).read_text() == ""
    assert f"{module} failed" not in (imported / "failed").read_text().splitlines()


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("job.cli", ("torch", "numpy", "pydantic", "yaml", "onnxruntime")),
        ("job.config", ("torch", "numpy", "onnxruntime")),
        ("job.publish", ("torch", "numpy", "pydantic")),
        ("job.verify", ("torch", "pydantic", "yaml", "onnx", "onnxruntime", "safetensors")),
        ("job.device", ("torch",)),
        ("job.table", ("torch", "pydantic", "yaml", "onnxruntime", "pyarrow")),
        ("job.doctor", ("torch",)),
        ("job.predict", ("torch", "pydantic", "yaml", "onnx", "onnxruntime", "safetensors")),
    ],
)
def test_a_light_module_stays_light(module: str, absent: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print([m for m in {absent!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_quiet_run_prints_its_path_alone_and_does_not_import_torchs_compiler(
    tmp_path: Path,
) -> None:
    """Torch's own optimizers would."""
    code = (
        "import sys; from job.cli import main; code = main(sys.argv[1:]);"
        "print(code, 'torch._dynamo' in sys.modules)"
    )
    arguments = ["train", "--quiet", *SMALL, f"--output={tmp_path}", "--run-id=q"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == (f"{tmp_path}/runs/q\n0 False\n", "")
