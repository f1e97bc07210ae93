"""The supply chain: complete pins, a lock of their hashes, known bad releases excluded."""

from __future__ import annotations

import re
import sys
import tomllib
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
BUILD = [*PYPROJECT["build-system"]["requires"], "editables"]
"""What installing the checkout itself takes; editables is what hatchling asks for then."""


@pytest.fixture(scope="module")
def lock() -> ModuleType:
    spec = spec_from_file_location("lock", REPOSITORY / "scripts" / "lock.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_lock_and_constraints_name_the_same_releases(lock: ModuleType) -> None:
    locked, torch = lock.pins(lock.LOCK), lock.pins(lock.TORCH_LOCK)
    assert set(torch) == {"torch"} and "torch" not in locked
    torch = {name: version.removesuffix("+cpu") for name, version in torch.items()}
    assert locked | torch == lock.pins(lock.CONSTRAINTS), "run scripts/lock.py"


def test_every_locked_release_has_hashes_and_no_place(lock: ModuleType) -> None:
    for path in (lock.LOCK, lock.TORCH_LOCK):
        text = path.read_text(encoding="utf-8")
        lines = [line.strip() for line in text.splitlines() if not line.startswith("#")]
        kinds = (r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.+]* \\", r"--hash=sha256:[0-9a-f]{64}( \\)?")
        assert [line for line in lines if not any(re.fullmatch(kind, line) for kind in kinds)] == []
        assert set(lock.blocks(text)) == set(lock.pins(path))
        assert "://" not in text


def test_incomplete_or_unknown_pins_are_not_locked(
    lock: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LOCK", "TORCH_LOCK", "CONSTRAINTS"):
        monkeypatch.setattr(lock, name, tmp_path / name)
    (tmp_path / "CONSTRAINTS").write_text("a_b==1\ntorch==2\n")
    made = "a-b[x]==1 \\\n    --hash=sha256:00\ntorch==2+cpu \\\n    --hash=sha256:01\n"
    with pytest.raises(SystemExit, match="does not pin c"):
        lock.write_locks(made + "c==3 \\\n    --hash=sha256:02\n")
    with pytest.raises(SystemExit, match="no hash was found of a-b"):
        lock.write_locks(made.partition("\n")[2].partition("\n")[2])
    assert not (tmp_path / "LOCK").exists()
    lock.write_locks(made)
    assert lock.pins(tmp_path / "LOCK") == {"a-b": "1"}
    assert lock.pins(tmp_path / "TORCH_LOCK") == {"torch": "2+cpu"}


def _needed(requirements: list[str]) -> set[str]:
    """Names of everything that these install here, by what the installed packages say of themselves."""
    todo, seen = [Requirement(line) for line in requirements], set()
    while todo:
        requirement = todo.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        with suppress(PackageNotFoundError):  # its name counts, what it needs is unknown here
            for line in distribution(name).requires or []:
                other = Requirement(line)
                if other.marker is None or any(other.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                    todo.append(other)
    return {name for name, _ in seen}


def test_everything_that_is_installed_is_pinned(lock: ModuleType) -> None:
    extras = PROJECT["optional-dependencies"]
    asked = [*PROJECT["dependencies"], *extras["dev"], *BUILD]
    for extra in re.search(r"perfuse\[(.*)\]", " ".join(asked))[1].split(","):  # type: ignore[index]
        asked += extras[extra]
    needed = _needed([line for line in asked if not line.startswith("perfuse[")])
    assert {"torch", "ray", "setuptools", "pytest", "hatchling"} <= needed
    assert needed - set(lock.pins(lock.CONSTRAINTS)) == set()


def test_known_bad_releases_are_excluded(lock: ModuleType) -> None:
    """2.6.2 and 2.6.3 of the Lightning family carried malware."""
    pinned = lock.pins(lock.LOCK)
    assert {"lightning", "pytorch-lightning"} & set(pinned) == set()
    assert pinned["lightning-fabric"] not in ("2.6.2", "2.6.3")
    requirement = next(r for r in map(Requirement, PROJECT["dependencies"]) if r.name == "lightning-fabric")
    assert not any(bad in requirement.specifier for bad in ("2.6.2", "2.6.3"))


def test_locks_are_installed_with_hashes_required() -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    rule = makefile.split("\ninstall-locked:")[1].split("\n\n")[0]
    assert "--no-deps --require-hashes $(TORCH_LOCK) -r requirements.lock" in rule and "pip check" in rule
    assert "TORCH_LOCK ?= -r requirements-torch.lock" in makefile
