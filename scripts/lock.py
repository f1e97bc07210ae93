"""Write requirements.lock and requirements-torch.lock: the pins of constraints.txt with the sha256 of their files.

    pip install pip-tools
    python scripts/lock.py

Every file that the configured index has of a pinned release is listed, whatever its platform. PyTorch stands apart: its
CPU build (2.13.0+cpu) is not the index's 2.13.0, which brings CUDA packages along, so it comes from somewhere of the
user's choice, and only the hash of the one file that this release was tested with is known.

Nothing is written unless constraints.txt is complete: what it leaves out, and would be installed unpinned, is named.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
CONSTRAINTS = REPOSITORY / "constraints.txt"
LOCK = REPOSITORY / "requirements.lock"
TORCH_LOCK = REPOSITORY / "requirements-torch.lock"
HEADER = """# Made by scripts/lock.py from constraints.txt, for CPython 3.11 on Linux x86_64. Do not edit.
# pip install --no-deps --require-hashes -r requirements-torch.lock -r requirements.lock  (`make install-locked`)
"""
TORCH_HEADER = """# Made by scripts/lock.py: the CPU build of PyTorch that was tested (CPython 3.11, Linux x86_64).
# Another build (CUDA, another Python) has another hash: verify it yourself, and use requirements.lock alone.
"""


def canonical(name: str) -> str:
    """A package's name as indexes compare it (PEP 503), without extras."""
    return re.sub(r"[-_.]+", "-", name.split("[")[0]).lower()


def pins(path: Path) -> dict[str, str]:
    """Canonical name -> version of a constraints or lock file."""
    lines = re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^\s\\;]+)", path.read_text(encoding="utf-8"), re.M)
    return {canonical(name): version for name, version in lines}


def blocks(text: str) -> dict[str, str]:
    """Canonical name -> its requirement with all its hashes, as pip-compile wrote them."""
    found = re.findall(r"^[A-Za-z0-9._-]+(?:\[[^]]*\])?==[^\n]*(?:\n    --hash[^\n]*)+", text, re.M)
    return {canonical(block.split("==")[0]): block for block in found}


def compiled(constraints: Path, known: Path) -> str:
    """What pip-compile makes of the pins; hashes of releases that ``known`` holds already are taken from there."""
    with tempfile.TemporaryDirectory() as work:
        out = Path(work) / "lock.txt"
        if known.is_file():
            shutil.copy(known, out)
        subprocess.run(
            [
                sys.executable, "-m", "piptools", "compile", "--quiet", "--generate-hashes", "--allow-unsafe",
                "--no-emit-index-url", "--no-emit-find-links", "--no-emit-trusted-host", "--no-header",
                "--no-annotate", "--strip-extras", "--output-file", str(out), str(constraints),
            ],
            check=True,
        )  # fmt: skip
        return out.read_text(encoding="utf-8")


def write_locks(text: str) -> None:
    """Split what pip-compile wrote, check it against the pins, and write both files."""
    locked, wanted = blocks(text), pins(CONSTRAINTS)
    if unpinned := sorted(set(locked) - set(wanted)):
        raise SystemExit(f"constraints.txt does not pin {', '.join(unpinned)}")
    if missing := sorted(set(wanted) - set(locked)):
        raise SystemExit(f"no hash was found of {', '.join(missing)}")
    torch = locked.pop("torch")
    LOCK.write_text(HEADER + "\n".join(locked[name] for name in sorted(locked)) + "\n", encoding="utf-8")
    TORCH_LOCK.write_text(f"{TORCH_HEADER}{torch}\n", encoding="utf-8")


if __name__ == "__main__":
    write_locks(compiled(CONSTRAINTS, LOCK))
