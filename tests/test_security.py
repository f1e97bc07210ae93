"""No code from data: what the package must not call, and the checks that find it. See docs/security.md."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "perfuse"
MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "marshal", "shelve", "dill", "joblib", "yaml", "jsonpickle"}
"""Readers that can run code."""
CALLS = {"eval", "exec", "compile", "__import__", "breakpoint"}
ATTRIBUTES = {
    "torch.load", "torch.save", "torch.jit.load", "torch.export.load", "torch.hub.load", "os.system", "os.popen",
    "tempfile.mktemp", "yaml.load", "pd.read_pickle", "pandas.read_pickle",
}  # fmt: skip
OBJECT_COLLECTIVES = {
    "all_gather_object", "gather_object", "broadcast_object_list", "scatter_object_list", "send_object_list",
    "recv_object_list",
}  # fmt: skip
"""torch.distributed's own, which pickle what they send; so does its checkpoint package."""
EVERY_ADDRESS = {"0.0.0.0", "::"}
ALLOWED = {("evaluation/export.py", "torch.export.load")}
"""Reads the archive that the same function wrote a moment before; nothing else may (docs/security.md says why)."""
IMPORTS_BY_NAME = {"models/__init__.py": "a plain dict of five names, and the configuration may name no other"}


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def forbidden(text: str) -> list[str]:
    """What a module does that data from elsewhere must never reach."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [
                a.name for a in node.names if a.name.split(".")[0] in MODULES or "distributed.checkpoint" in a.name
            ]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{a.name}" for a in node.names]
            found += [n for n in names if n.split(".")[0] in MODULES or n in ATTRIBUTES]
            found += [n for n in names if "distributed.checkpoint" in n or n.rsplit(".")[-1] in OBJECT_COLLECTIVES]
            found += [n for n in names if n == "importlib.import_module"]
        elif isinstance(node, ast.Attribute):
            name = dotted(node)
            if name in ATTRIBUTES or node.attr in OBJECT_COLLECTIVES or name == "importlib.import_module":
                found.append(name or node.attr)
        elif isinstance(node, ast.Call):
            found += forbidden_call(node)
        elif isinstance(node, ast.Constant) and node.value in EVERY_ADDRESS:
            found.append(f"address {node.value}")
    return found


def forbidden_call(node: ast.Call) -> list[str]:
    name, given = dotted(node.func), {k.arg: k.value for k in node.keywords}
    found = [name] if name in CALLS else []
    for option in ("allow_pickle", "shell", "trust_remote_code"):
        value = given.get(option)
        if value is not None and not (isinstance(value, ast.Constant) and value.value is False):
            found.append(f"{option}=")
    if name in ("np.load", "numpy.load", "np.lib.format.read_array") and "allow_pickle" not in given:
        found.append(f"{name} without allow_pickle=False")
    return found


def test_nothing_in_the_package_can_run_code_from_a_file() -> None:
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        name = path.relative_to(SOURCE).as_posix()
        calls = [c for c in forbidden(path.read_text(encoding="utf-8")) if (name, c) not in ALLOWED]
        if name in IMPORTS_BY_NAME:
            calls.remove("importlib.import_module")
        if calls:
            found[name] = calls
    assert found == {}


@pytest.mark.parametrize(
    "text",
    [
        "import pickle", "from cloudpickle import loads", "import torch\ntorch.load('x')", "from torch import load",
        "import yaml\nyaml.safe_load(x)", "eval('1')", "exec(text)", "__import__(name)", "np.load('x')",
        "np.load('x', allow_pickle=True)", "np.load('x', allow_pickle=flag)", "subprocess.run(x, shell=True)",
        "dist.all_gather_object(a, b)", "from torch.distributed import broadcast_object_list",
        "import torch.distributed.checkpoint as dcp", "from torch.distributed.checkpoint import load",
        "import importlib\nimportlib.import_module(name)", "from importlib import import_module",
        "torch.export.load(file)", "os.system(x)", "serve(host='0.0.0.0')", "np.lib.format.read_array(f)",
        "tempfile.mktemp()",
    ],
)  # fmt: skip
def test_each_of_them_is_found(text: str) -> None:
    assert forbidden(text)


@pytest.mark.parametrize(
    "text",
    [
        "model.eval()", "np.load('x', allow_pickle=False)", "subprocess.run(x, shell=False)", "import json",
        "from safetensors.torch import load", "torch.export.save(p, f)", "serve(host='127.0.0.1')", "re.compile('x')",
    ],
)  # fmt: skip
def test_what_is_harmless_is_not(text: str) -> None:
    assert forbidden(text) == []


_LISTENERS = """
import psutil
from perfuse.data.simulation_ray import connected, import_ray

with connected(import_ray(is_local=True), "local", 1):
    me = psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        for c in process.net_connections(kind="inet"):
            if c.status == psutil.CONN_LISTEN:
                print(c.laddr.ip.removeprefix("::ffff:"))
"""


@pytest.mark.slow
def test_an_embedded_ray_listens_to_this_machine_alone() -> None:
    pytest.importorskip("psutil")
    pytest.importorskip("ray")
    done = subprocess.run([sys.executable, "-c", _LISTENERS], capture_output=True, text=True, timeout=120, check=False)
    addresses = done.stdout.split()
    assert len(addresses) > 3, done.stderr[-500:]
    assert {address for address in addresses if not address.startswith("127.") and address != "::1"} == set()
