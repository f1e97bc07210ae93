"""``python -m fuzz --target origin-npz --inputs 100000 --engine atheris``: see ``fuzz/README.md``."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

ENGINE_NAMES = ("hypothesis", "atheris", "random")
HANG_S = 60.0
"""A process that reads one input for so long hangs."""
MAX_DEATHS = 20
_THREADS = ("OMP_NUM_THREADS", "POLARS_MAX_THREADS", "ARROW_NUM_THREADS", "RAYON_NUM_THREADS")


def _workspace() -> Path:
    shared = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="perfuse-fuzz-", dir=shared if shared.is_dir() else None))


def _counts(folder: Path) -> dict[str, Any]:
    path = folder / "counts.json"
    return (
        json.loads(path.read_text())
        if path.is_file()
        else {"inputs": 0, "accepted": 0, "max_cpu_s": 0.0, "findings": {}}
    )


def _watched(command: list[str], folder: Path) -> int:
    """The exit code of a worker; it is killed (and the code -9) when it reads one input for ``HANG_S``."""
    environment = os.environ | dict.fromkeys(_THREADS, "1")
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log) as worker,
    ):
        last, since = b"", time.monotonic()
        while worker.poll() is None:
            time.sleep(0.2)
            path = folder / "current"
            now = path.read_bytes()[:4096] + str(_counts(folder)["inputs"]).encode() if path.is_file() else b""
            if now != last or not now:
                last, since = now, time.monotonic()
            elif time.monotonic() - since > HANG_S:
                worker.kill()
        return worker.returncode


def fuzz(target: str, engine: str, inputs: int, seed: int, out: Path) -> dict[str, Any]:
    """Give a target inputs until it had enough, in a process that is started again when it dies.

    Returns:
        Counts: inputs, accepted (valid ones), findings, max_ms, growth_mb (of the longest process), seconds.
    """
    from fuzz.engine import current_input

    start, total = time.monotonic(), {"inputs": 0, "accepted": 0, "max_ms": 0.0, "growth_mb": 0.0}
    findings: dict[str, list[bytes]] = {}
    deaths, longest = 0, 0
    while total["inputs"] < inputs and deaths <= MAX_DEATHS:
        folder = _workspace()
        try:
            rest = inputs - int(total["inputs"])
            command = [sys.executable, "-m", "fuzz", "--work", str(folder), "--target", target, "--engine", engine,
                       "--inputs", str(rest), "--seed", str(seed + deaths)]  # fmt: skip
            code = _watched(command, folder)
            counts = _counts(folder)
            if not counts.get("end"):
                if not (folder / "current").is_file():
                    raise SystemExit(f"{target}: the worker did not start\n{(folder / 'log').read_text()[-3000:]}")
                deaths += 1
                how = "hangs" if code == -9 else f"ends the process with code {code}"
                said = (folder / "log").read_bytes()[-300:].replace(b"\n", b" ")
                findings.setdefault(how, []).append(how.encode() + b": " + said + b"\n" + current_input(folder))
                counts["inputs"] += 1
            for name, kept in counts["findings"].items():
                findings.setdefault(name, []).extend(map(bytes.fromhex, kept))
            total["inputs"] += counts["inputs"]
            total["accepted"] += counts["accepted"]
            total["max_ms"] = max(total["max_ms"], round(1e3 * counts["max_cpu_s"], 1))
            if counts["inputs"] > longest and "growth_bytes" in counts:
                longest, total["growth_mb"] = counts["inputs"], round(counts["growth_bytes"] / 1e6, 1)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    _save(out / target, findings)
    return total | {"findings": sorted(findings), "seconds": round(time.monotonic() - start, 1)}


def _save(folder: Path, findings: dict[str, list[bytes]]) -> None:
    for name, kept in findings.items():
        for text in kept[:2]:
            folder.mkdir(parents=True, exist_ok=True)
            said, _, data = text.partition(b"\n")
            stem = folder / f"{''.join(c if c.isalnum() else '-' for c in name)[:60]}-{sha256(data).hexdigest()[:8]}"
            stem.with_suffix(".bin").write_bytes(data)
            stem.with_suffix(".txt").write_bytes(said + b"\n")


def main() -> int:
    """Returns 1 when there was a finding."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("--target", action="append", default=[], help="may be repeated; default: every one")
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--engine", choices=ENGINE_NAMES, default="hypothesis")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("fuzz-findings"), help="where inputs that fail are kept")
    parser.add_argument("--list", action="store_true", help="name the targets")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        from fuzz.engine import work

        work(given.target[0], given.engine, given.inputs, given.seed, given.work)
        return 0
    from fuzz.targets import TARGETS

    if given.list:
        print("\n".join(TARGETS))
        return 0
    failed = False
    for target in given.target or TARGETS:
        found = fuzz(target, given.engine, given.inputs, given.seed, given.out)
        failed = failed or bool(found["findings"])
        print(json.dumps({"target": target, "engine": given.engine} | found), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
