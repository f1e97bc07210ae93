"""Where something was made: versions, commit, machine, threads, time, command."""

from __future__ import annotations

import os
import platform
import re
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("torch", "numpy", "scipy", "lightning-fabric", "safetensors", "pyarrow", "polars", "pydantic")
_MAX_COMMAND = 4000
_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_REF = re.compile(r"refs/[\w./-]+")
_MAX_REF_BYTES = 2**20
_USER_IN_URL = re.compile(r"(?<=://)[^/\s@]+@")
_SECRET_IN_URL = re.compile(r"(?i)([?&][\w-]*(?:sig|signature|token|key|secret|password|credential)[\w-]*=)[^&\s'\"]+")


def provenance() -> dict[str, object]:
    """Plain data: code and library versions, Python, operating system, processor, cores, UTC time, command line."""
    return {**machine(), "created_utc": utc_now(), "command": command_line()}


def machine() -> dict[str, object]:
    """Plain data: the part of ``provenance`` that does not change while the program runs."""
    from perfuse import __version__

    packages = {}
    for name in _PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "perfuse": __version__, "git_commit": git_commit(), "python": platform.python_version(), "packages": packages,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}", "processor": _processor(),
        "cores": os.cpu_count(),
    }  # fmt: skip


def utc_now() -> str:
    """ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def command_line() -> str:
    """This program's command as a shell takes it; user names, passwords and tokens inside URLs are left out."""
    words = [Path(sys.argv[0]).name, *sys.argv[1:]] if sys.argv else []
    if words and words[0] == "__main__.py":  # python -m perfuse
        words[0] = "perfuse"
    return without_secrets(shlex.join(words))[:_MAX_COMMAND]


def without_secrets(text: str) -> str:
    """The text, with credentials in URLs (``user:password@``, ``?token=...``) as ``***``."""
    return _SECRET_IN_URL.sub(r"\1***", _USER_IN_URL.sub("***@", text))


def git_commit(package: Path | None = None) -> str | None:
    """The commit that is checked out, if this code runs from a checkout; files may have been changed since.

    Read from ``.git`` itself, since git may not be there, and may refuse other users' folders.

    Args:
        package: Folder of the package; by default this one's.
    """
    root = (package or Path(__file__).resolve().parents[1]).parents[1]
    if not (root / "pyproject.toml").is_file():  # installed: a .git above site-packages is someone else's
        return None
    try:
        folder = root / ".git"
        if folder.is_file():  # a work tree
            folder = root / _short(folder).removeprefix("gitdir:").strip()
        head = _short(folder / "HEAD")
        if _COMMIT.fullmatch(head):
            return head
        ref = head.removeprefix("ref:").strip()
        if not _REF.fullmatch(ref) or ".." in ref:
            return None
        common = folder / "commondir"
        places = [folder, folder / _short(common)] if common.is_file() else [folder]
        for place in places:
            if (place / ref).is_file():
                found = _short(place / ref)
                return found if _COMMIT.fullmatch(found) else None
        for place in places:
            packed = _short(place / "packed-refs") if (place / "packed-refs").is_file() else ""
            for line in packed.splitlines():
                commit, _, name = line.partition(" ")
                if name == ref and _COMMIT.fullmatch(commit):
                    return commit
    except (OSError, ValueError):
        pass
    return None


def _short(path: Path) -> str:
    with path.open(encoding="utf-8") as file:
        return file.read(_MAX_REF_BYTES).strip()


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"
