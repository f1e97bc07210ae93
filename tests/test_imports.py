"""Imports go one way, and asking for help imports nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import perfuse

PACKAGE = Path(perfuse.__file__).parent
LAYERS = ("pk", "data", "models", "training", "evaluation", "tuning", "cli")
"""From the bottom up; a layer imports itself and those before it."""
CLI_MODULES = (
    "cli", "cli_options", "cli_export", "cli_progress", "cli_runs", "cli_solver", "cli_tune", "convert", "demo",
    "info", "__main__",
)  # fmt: skip
FREE = ("errors", "files", "config", "launch")
"""Importable by every layer; from the bottom up among themselves."""
HEAVY = ("torch", "lightning_fabric", "polars", "plotly", "pyarrow", "scipy", "numpy", "pydantic", "pint", "jinja2")


def layer_of(module: str) -> str:
    """``perfuse.data.table`` -> ``data``; the small modules of the command line belong to ``cli``."""
    part = module.split(".")[1] if "." in module else "__init__"
    return "cli" if part in CLI_MODULES else part


def module_of(path: Path) -> str:
    parts = ("perfuse", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(path: Path) -> list[tuple[int, str]]:
    """(line, module of ours) for every import of the file, inside functions too."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            assert node.module is not None
            found.append((node.lineno, node.module))
            if node.module == "perfuse":
                found += [(node.lineno, f"perfuse.{alias.name}") for alias in node.names if alias.name[0] != "_"]
    return [(line, name) for line, name in found if name.split(".")[0] == "perfuse"]


def wrong_imports(path: Path, mine: str) -> list[str]:
    """Imports of the file that a module of layer ``mine`` must not have."""
    wrong = []
    for line, name in imported_modules(path):
        theirs = layer_of(name)
        if theirs in ("__init__", mine) or (
            theirs in FREE and (mine not in FREE or FREE.index(theirs) < FREE.index(mine))
        ):
            continue
        if mine in LAYERS and theirs in LAYERS and LAYERS.index(theirs) < LAYERS.index(mine):
            continue
        wrong.append(f"{path}:{line}: {mine} imports {theirs} ({name})")
    return wrong


def test_every_module_belongs_to_a_layer() -> None:
    layers = {layer_of(module_of(path)) for path in PACKAGE.rglob("*.py")}
    assert layers <= {*LAYERS, *FREE, "__init__"}


def test_imports_go_one_way() -> None:
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 20
    assert [text for path in files for text in wrong_imports(path, layer_of(module_of(path)))] == []


@pytest.mark.parametrize(
    ("mine", "line", "is_wrong"),
    [
        ("pk", "from perfuse.models.flux import Flux", True),
        ("data", "import perfuse.training.loop", True),
        ("training", "from perfuse.evaluation import metrics", True),
        ("config", "from perfuse.pk.physiology import ORGANS", True),
        ("errors", "from perfuse import config", True),
        ("files", "from perfuse.config import load_config", True),
        ("config", "from perfuse.files import read_toml", False),
        ("evaluation", "from perfuse.cli import main", True),
        ("evaluation", "from perfuse.training.checkpoint import load_model", False),
        ("config", "from perfuse.errors import InputError", False),
        ("data", "from perfuse import config", False),
    ],
)
def test_the_check_sees_what_is_wrong(tmp_path: Path, mine: str, line: str, is_wrong: bool) -> None:
    file = tmp_path / "module.py"
    file.write_text(f"def f():\n    {line}\n")  # inside a function: lazy imports count too
    assert bool(wrong_imports(file, mine)) == is_wrong


def test_the_command_line_imports_nothing_heavy() -> None:
    code = "import sys, perfuse.cli; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) & set(HEAVY) == set()


def test_pk_and_data_load_without_models_or_training() -> None:
    code = (
        "import sys, perfuse.data.table, perfuse.pk.mechanistic;"
        "print(*[m for m in sys.modules if m.startswith(('perfuse.models', 'perfuse.training'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
