"""What a fresh machine is set up with: locks, make targets, and what is never committed."""

import re
import subprocess

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
