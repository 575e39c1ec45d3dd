"""Makes the locks again: `make lock`. Needs uv (a package on PyPI) and PyPI itself.

cuda.txt  what the job imports, for tables too, with torch's CUDA build as PyPI has it
cpu.txt   the same versions without CUDA's packages, with the hashes of torch's CPU builds
dev.txt   what tests, lint and types need besides
"""

import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
CUDA_ONLY = re.compile(r"(nvidia|cuda)-|triton==")


def compile_lock(*arguments: str) -> str:
    command = ["uv", "pip", "compile", "pyproject.toml", "--extra", "tables"]
    command += ["--universal", "--generate-hashes"]
    command += ["--python-version", "3.11", "--fork-strategy", "fewest"]
    command += ["--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links"]
    done = subprocess.run(
        [*command, *arguments], cwd=HERE.parent, stdout=subprocess.PIPE, check=True, text=True
    )
    return done.stdout


def blocks(lock: str) -> list[str]:
    """One text a package: its line and its hashes."""
    return re.split(r"\n(?=[a-z])", lock.strip())


def for_cpu(cuda: list[str]) -> list[str]:
    kept = [block for block in cuda if not CUDA_ONLY.match(block)]
    version = next(b for b in kept if b.startswith("torch==")).split()[0]
    return [cpu_torch(version) if b.startswith("torch==") else b for b in kept]


def cpu_torch(requirement: str) -> str:
    lines = (HERE / "torch-cpu.sha256").read_text().splitlines()
    wheels = [line.split() for line in lines if line and not line.startswith("#")]
    version = requirement.partition("==")[2]
    wrong = [name for _, name in wheels if not re.match(rf"torch-{version}(\+cpu)?-", name)]
    if wrong:
        sys.exit(f"torch-cpu.sha256 lists {wrong[0]}; the lock is for {requirement}")
    return " \\\n    ".join([requirement, *(f"--hash=sha256:{digest}" for digest, _ in wheels)])


def write(name: str, heading: str, packages: list[str]) -> None:
    (HERE / name).write_text(
        f"# {heading}\n# Made by requirements/lock.py.\n" + "\n".join(packages) + "\n"
    )


def main() -> None:
    cuda = blocks(compile_lock())
    write("cuda.txt", "The job with torch's CUDA build.", cuda)
    write("cpu.txt", "The job with torch's CPU build.", for_cpu(cuda))
    shared = {block.split("==")[0] for block in cuda}
    dev = blocks(compile_lock("--group", "dev", "--constraints", "requirements/cuda.txt"))
    own = [block for block in dev if block.split("==")[0] not in shared]
    write("dev.txt", "Tests, lint and types, besides cpu.txt or cuda.txt.", own)


if __name__ == "__main__":
    main()
