"""Where a result was made: versions, machine, time, command."""

from __future__ import annotations

import os
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("torch", "numpy", "scipy", "lightning-fabric", "safetensors", "pyarrow", "polars", "pydantic")


def provenance() -> dict[str, object]:
    """Plain data: code and library versions, Python, operating system, processor, memory, UTC time, command line."""
    from perfuse import __version__

    packages = {}
    for name in _PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "perfuse": __version__, "python": platform.python_version(), "packages": packages,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}", "processor": _processor(),
        "cores": os.cpu_count(), "created_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])[:1000],
    }  # fmt: skip


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"
