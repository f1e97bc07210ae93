"""What the package says about itself: dependencies, pins, and documentation that names real things."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

import perfuse

REPOSITORY = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MODULE_OF = {"lightning-fabric": "lightning_fabric", "scikit-sundae": "sksundae", "python-libsbml": "libsbml"}
UNDECLARED_BY_RAY = {"pandas"}
"""What ``ray.tune`` imports without ``ray`` requiring it; its own extra asks for tensorboardX too, unused here."""
OPTIONAL = ("cluster", "export", "sensitivity")
"""Extras whose packages are imported, lazily, by the part that needs them."""


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[<>=!~\[ ]", requirement)[0] for requirement in requirements}


def imported_packages(folder: Path) -> set[str]:
    found = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                modules = [node.module]
            else:
                continue
            found |= {module.split(".")[0] for module in modules}
            if any(module.startswith("torch.utils.tensorboard") for module in modules):
                found.add("tensorboard")
    return found


def test_dependencies_are_exactly_what_is_imported() -> None:
    imported = imported_packages(REPOSITORY / "src") - set(sys.stdlib_module_names) - {"perfuse", "__future__"}
    extras = [requirement for extra in OPTIONAL for requirement in PROJECT["optional-dependencies"][extra]]
    declared, optional = ({MODULE_OF.get(n, n) for n in names(r)} for r in (PROJECT["dependencies"], extras))
    assert imported | UNDECLARED_BY_RAY == declared | optional


def test_every_dependency_is_pinned_and_every_pin_is_plain() -> None:
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert [pin for pin in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", pin)] == []
    assert "torch==2.13.0" in pins
    pinned = {pin.split("==")[0].lower().replace("_", "-") for pin in pins}
    wanted = names(PROJECT["dependencies"])
    for extra in (*OPTIONAL, "dev"):
        wanted |= names(PROJECT["optional-dependencies"][extra]) - {"perfuse"}
    assert {name.lower() for name in wanted} - pinned == set()


def test_known_bad_releases_cannot_be_installed() -> None:
    assert "lightning-fabric>=2.6.6" in PROJECT["dependencies"]


def test_the_changelog_begins_with_this_version() -> None:
    headings = re.findall(r"^## (\S+)", (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert headings[0] == perfuse.__version__


def test_the_seed_page_names_real_files_and_tests() -> None:
    page = (REPOSITORY / "docs" / "seed.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:src|tests|benchmarks)/[^`]+)`", page)
    assert len(named) > 60
    missing = []
    for name in named:
        file, _, test = name.partition("::")
        path = REPOSITORY / file
        if not path.is_file() or (test and f"def {test}(" not in path.read_text(encoding="utf-8")):
            missing.append(name)
    assert missing == []


def test_every_row_of_the_seed_page_has_a_file_and_a_test() -> None:
    page = (REPOSITORY / "docs" / "seed.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1:-1] for line in page.splitlines() if line.startswith("| ")]
    rows = [row for row in rows if row[1].strip() != "here"]
    assert len(rows) > 25
    for feature, here, shown in rows:
        assert "`" in here, feature
        assert "::test_" in shown, feature


@pytest.fixture(scope="module")
def checker() -> ModuleType:
    spec = spec_from_file_location("check_docs", REPOSITORY / "scripts" / "check_docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_documentation_blocks_have_a_language_and_skips_a_reason(checker: ModuleType) -> None:
    blocks = [block for page in checker.pages() for block in checker.blocks_of(page)]
    assert len([b for b in blocks if b.language in ("bash", "python") and not b.skipped_because]) > 10
    assert all(len(b.skipped_because) > 10 for b in blocks if b.skipped_because)


@pytest.mark.parametrize(
    ("text", "works"),
    [
        ("```bash\ntest -d .\n```\n", True),
        ("```bash\nfalse\ntrue\n```\n", False),
        ("```python\nassert 1 == 2\n```\n", False),
        ("```bash\necho x > f\n```\n\n```python\nassert open('f').read() == 'x\\n'\n```\n", True),
        ("<!-- not run: there is no such command -->\n```bash\nno-such-command\n```\n", True),
        ("<!-- not run: -->\n```bash\nno-such-command\n```\n", False),
        ("```\nno language\n```\n", False),
        ("```text\nfalse\n```\n", True),
    ],
)
def test_the_documentation_check_can_fail(
    checker: ModuleType, text: str, works: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checker, "REPOSITORY", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(text)
    assert checker.main([str(page)]) == (0 if works else 1)
