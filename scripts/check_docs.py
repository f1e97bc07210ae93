"""Run every fenced ``bash`` and ``python`` block of README.md and docs/, so that no example can rot.

The blocks of one page run in order in one temporary folder, with the environment's programs on PATH. A block is
left out only by a comment that says why, on the line before it: ``<!-- not run: needs a GPU -->``. Blocks that
show output, or files, are fenced ``text``, ``toml``, ``csv`` or ``json``.

    python scripts/check_docs.py [PAGE ...]
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
SHOWN_ONLY = ("text", "toml", "csv", "json", "yaml")
_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<body>.*?)^(?P=indent)```\s*$", re.M | re.S)
_SKIP = re.compile(r"<!-- not run: (?P<reason>\S[^>]*?) -->\s*\Z")
_TIMEOUT_S = 600


@dataclass(frozen=True)
class Block:
    """One fenced block: where, in which language, and why it is not run ("" when it is)."""

    page: Path
    line: int
    language: str
    body: str
    skipped_because: str

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(REPOSITORY)}:{self.line}"


def pages() -> list[Path]:
    """README, then every page of docs/."""
    return [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]


def blocks_of(page: Path) -> list[Block]:
    """The page's fenced blocks.

    Raises:
        ValueError: for a block without a language, or with one that is neither run nor known as shown only.
    """
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        language = match["language"]
        if language not in ("bash", "python", *SHOWN_ONLY):
            raise ValueError(f"{page}:{line}: fence says {language!r}; use bash, python or {', '.join(SHOWN_ONLY)}")
        skip = _SKIP.search(text[: match.start()])
        indent = len(match["indent"])
        body = "".join(row[indent:] for row in match["body"].splitlines(keepends=True))
        found.append(Block(page, line, language, body, skip["reason"] if skip else ""))
    return found


def run_block(block: Block, folder: Path) -> None:
    """Run one block in ``folder``.

    Raises:
        subprocess.CalledProcessError: if it fails.
    """
    environment = dict(os.environ)
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    if block.language == "bash":
        command = ["bash", "-euo", "pipefail", "-c", block.body]
    else:
        command = [sys.executable, "-c", block.body]
    subprocess.run(
        command, cwd=folder, env=environment, check=True, timeout=_TIMEOUT_S, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def check_page(page: Path) -> tuple[int, int]:
    """Run a page's blocks; returns how many ran and how many were left out with a reason."""
    ran = left_out = 0
    with tempfile.TemporaryDirectory(prefix="perfuse-docs-") as name:
        for block in blocks_of(page):
            if block.language in SHOWN_ONLY:
                continue
            if block.skipped_because:
                print(f"  not run  {block.where}: {block.skipped_because}", flush=True)
                left_out += 1
                continue
            began = time.monotonic()
            run_block(block, Path(name))
            print(f"  ok       {block.where} ({block.language}, {time.monotonic() - began:.1f} s)", flush=True)
            ran += 1
    return ran, left_out


def main(names: list[str]) -> int:
    """Check the named pages, or all."""
    ran = left_out = 0
    for page in [Path(n).resolve() for n in names] or pages():
        try:
            counts = check_page(page)
        except subprocess.CalledProcessError as error:
            print(f"FAILED {page}: exit {error.returncode}\n{error.cmd[-1]}\n--- output\n{error.stdout}")
            return 1
        except (subprocess.TimeoutExpired, ValueError) as error:
            print(f"FAILED {page}: {error}")
            return 1
        ran, left_out = ran + counts[0], left_out + counts[1]
    print(f"documentation: {ran} blocks ran, {left_out} left out with a reason")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
