"""What a fresh machine is set up with: locks, make targets, and what is never committed."""

import hashlib
import os
import re
import shutil
import signal
import subprocess
import zipfile
from pathlib import Path

import pytest

from .conftest import ROOT

LOCKS = {
    name: (ROOT / "requirements" / f"{name}.txt").read_text() for name in ("cpu", "cuda", "dev")
}


def pins(lock: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9.-]+)==([\w.]+)", lock, re.MULTILINE))


def test_every_package_is_pinned_with_its_hashes() -> None:
    for name, lock in LOCKS.items():
        blocks = re.split(r"\n(?=[a-z])", lock)[1:]
        assert len(blocks) == len(pins(lock)), name
        for block in blocks:
            assert re.search(r"--hash=sha256:[0-9a-f]{64}", block), block


def test_both_locks_hold_the_same_versions_but_for_cuda() -> None:
    cpu, cuda = pins(LOCKS["cpu"]), pins(LOCKS["cuda"])
    assert cpu.items() <= cuda.items()
    extra = cuda.keys() - cpu.keys()
    assert extra
    assert all(name.startswith(("nvidia-", "cuda-")) or name == "triton" for name in extra)


def test_the_cpu_lock_holds_no_wheel_with_cuda() -> None:
    torch = {
        name: set(re.findall(r"sha256:(\w+)", re.search(r"torch==(.|\n)*?(?=\n[a-z])", lock)[0]))  # type: ignore[index]
        for name, lock in LOCKS.items()
        if name != "dev"
    }
    listed = (ROOT / "requirements" / "torch-cpu.sha256").read_text()
    assert torch["cpu"] == set(re.findall(r"^[0-9a-f]{64}", listed, re.MULTILINE))
    shared = torch["cpu"] & torch["cuda"]
    assert all(re.search(f"{digest} .*macosx", listed) for digest in shared)


def test_no_lock_names_an_index() -> None:
    for lock in LOCKS.values():
        assert "://" not in lock


def test_plain_make_lists_every_target() -> None:
    done = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True)
    makefile = (ROOT / "Makefile").read_text()
    targets = re.search(r"^\.PHONY: ((?:.*\\\n)*.*)$", makefile, re.MULTILINE)
    assert targets is not None
    listed = re.findall(r"^  make ([\w-]+) +\S", done.stdout, re.MULTILINE)
    assert sorted(listed) == sorted(targets[1].replace("\\", "").split())


def test_an_old_python_is_refused_with_what_to_do() -> None:
    code = (
        "import runpy, sys; sys.version_info = (3, 10, 1); sys.argv = ['install.py', 'never']\n"
        "runpy.run_path('requirements/install.py', run_name='__main__')"
    )
    done = subprocess.run(
        ["python3", "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "make setup PYTHON=python3.12" in done.stderr


def wheel(folder: Path, name: str) -> str:
    """The lock of a package that holds nothing, made in `folder`."""
    path, info = folder / f"{name}-1.0-py3-none-any.whl", f"{name}-1.0.dist-info"
    files = {
        "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        "WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "".join(f"{info}/{file},,\n" for file in ("METADATA", "WHEEL", "RECORD")),
    }
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in files.items():
            archive.writestr(f"{info}/{file}", text)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return f"{name}==1.0 \\\n    --hash=sha256:{digest}\n"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What `make setup` needs, with locks of packages that hold nothing."""
    (tmp_path / "requirements").mkdir()
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "job").mkdir()
    for name in ("requirements/install.py", "job/__init__.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    torch, dev = wheel(tmp_path, "torch"), wheel(tmp_path, "nothing")
    for name, lock in (("cpu", torch), ("cuda", torch), ("dev", dev)):
        (tmp_path / "requirements" / f"{name}.txt").write_text(lock)
    return tmp_path


def setup(checkout: Path) -> subprocess.Popen[str]:
    """`make setup` from the wheels beside it, under way."""
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(checkout), "PIP_CONFIG_FILE": os.devnull}
    return subprocess.Popen(
        ["make", "--silent", "setup"],
        cwd=checkout,
        env={**os.environ, **offline},
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_setups_at_once_make_one_environment_and_later_ones_leave_it(checkout: Path) -> None:
    """As two lines of a crontab at the same minute would, and the next night's."""
    both = [setup(checkout) for _ in range(2)]
    said = [process.communicate(timeout=300)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sum("setup: making" in words for words in said) == 1, said
    freeze = [str(checkout / ".venv" / "bin" / "python"), "-m", "pip", "list", "--format=freeze"]
    installed = subprocess.run(freeze, capture_output=True, text=True, check=True).stdout.split()
    assert {"torch==1.0", "nothing==1.0"} <= set(installed)

    # The locks are newer, as after `git switch` there and back, and not other.
    os.utime(checkout / ".venv" / ".ready", (0, 0))
    again = setup(checkout)
    assert again.communicate(timeout=300)[1] == ""
    assert again.returncode == 0


def test_a_setup_that_is_cut_off_leaves_nothing_that_looks_ready(checkout: Path) -> None:
    ready = checkout / ".venv" / ".ready"
    ready.parent.mkdir()
    ready.write_text("made of other locks")
    os.utime(ready, (0, 0))
    with setup(checkout) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("setup: making .venv")
        os.killpg(process.pid, signal.SIGKILL)
    assert not ready.exists()
