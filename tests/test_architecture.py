"""The house of the design: which room imports which, what an import costs, what is never done.

Rooms from the ground up; a room imports only from rooms below it, and only those in its row.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import nni_spaceevo

PACKAGE = Path(nni_spaceevo.__file__).parent
NAME = PACKAGE.name
GROUND = {"errors", "files"}
ROOMS = {
    "errors": set(),
    "files": {"errors"},
    "own": set(),
    "page": set(),
    "parallel": set(),
    "device": set(),
    "hyperspace": set(),
    "quant": {"parallel"},
    "latency": {"own", "page", "hyperspace"},
    "network": {"parallel", "hyperspace", "quant"},
    "distill": {"own", "parallel", "device", "hyperspace", "quant", "network"},
    "lut": {"hyperspace", "latency", "network", "distill"},
    "search": {"hyperspace", "latency", "lut"},
    "supernet": {"parallel", "device", "hyperspace", "quant", "network"},
    "deploy": {"hyperspace", "quant", "latency", "network"},
    "jobs": {
        *("parallel", "device"),
        *("hyperspace", "quant", "latency", "network", "distill", "lut", "search"),
        *("supernet", "deploy"),
    },
    "reports": {"page", "hyperspace", "latency", "lut", "search", "deploy", "jobs"},
    "plugin": {
        "parallel",
        *("hyperspace", "quant", "latency", "network", "distill", "lut", "search"),
        *("supernet", "deploy", "jobs", "reports"),
    },
    "cli": {
        *("hyperspace", "quant", "latency", "network", "distill", "lut", "search"),
        *("supernet", "deploy", "jobs", "reports", "plugin"),
    },
    "testing": {"hyperspace", "lut", "search"},
}
# What the first end-to-end path needs; `supernet` and `deploy` come later.
LIGHT_ROOMS = ("hyperspace", "latency", "lut", "search")
HEAVY = ("torch", "nni", "pytorch_lightning", "lightning", "sklearn", "onnxruntime", "nn_meter")
PICKLES = {"pickle", "_pickle", "cPickle", "joblib", "dill", "cloudpickle", "shelve", "marshal"}
# nn-Meter's files are pickles: read only behind --trust-pickle, and written.
PICKLE_CALLS = {
    "latency/nn_meter.py": {"pickle.loads"},
    "latency/nn_meter_export.py": {"pickle.dumps"},
}
FILES = sorted(p for p in PACKAGE.rglob("*.py") if p.relative_to(PACKAGE).parts[0] != "examples")


def ident(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


each_file = pytest.mark.parametrize("path", FILES, ids=ident)


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def room_of(path: Path) -> str:
    """`hyperspace` for hyperspace/codes.py, `files` for files.py, `__init__` for the top one."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(path: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute name of everything that a file imports, at any depth."""
    package = [NAME, *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from . import x` may name a module: the longer name says which.
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def imported_rooms(path: Path) -> Iterator[tuple[int, str]]:
    """Line and room of every import of the package's own."""
    for line, module in imported_modules(path):
        parts = module.split(".")
        if parts[0] == NAME and len(parts) > 1:
            yield line, parts[1]


# ---- who imports whom -------------------------------------------------------------------------


def test_the_table_has_no_way_back() -> None:
    order = list(ROOMS)
    for room, below in ROOMS.items():
        assert all(order.index(other) < order.index(room) for other in below), room


@each_file
def test_a_room_imports_only_from_the_rooms_below_it(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":  # Reaches every room lazily, so imports none.
        allowed: set[str] = set()
    else:
        assert room in ROOMS, f"{room} has no row in the table of rooms above"
        own = {"errors"} if room in GROUND else GROUND
        allowed = own | ROOMS[room] | {room, "__version__"}
    for line, other in imported_rooms(path):
        assert other in allowed, f"{ident(path)}:{line} imports {other}"


@pytest.mark.parametrize(
    ("statement", "room"),
    [
        ("from ..errors import CodeError", "errors"),
        ("from .. import files", "files"),
        ("from .fit import fit", "latency"),
        ("from . import fit", "latency"),
        ("import nni_spaceevo.lut.table", "lut"),
        ("def later():\n    from nni_spaceevo.search import evolve", "search"),
        ("import nni.nas", None),
    ],
)
def test_the_check_above_knows_every_way_to_import(
    statement: str, room: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    path = tmp_path / "latency" / "some.py"
    path.parent.mkdir()
    path.write_text(statement)
    assert [other for _, other in imported_rooms(path)] == ([room] if room else [])


@each_file
def test_a_relative_import_stays_inside_the_package(path: Path) -> None:
    depth = len(path.relative_to(PACKAGE).parts)
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.ImportFrom):
            assert node.level <= depth, f"line {node.lineno}"


# ---- what an import costs ---------------------------------------------------------------------


def run(code: str) -> str:
    """Output of a fresh interpreter."""
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_importing_the_package_takes_under_three_tenths_of_a_second() -> None:
    # Of processor time, which does not count what else the machine is doing.
    timed = f"import time; start = time.process_time(); import {NAME}"
    assert min(float(run(f"{timed}; print(time.process_time() - start)")) for _ in range(3)) < 0.3


@pytest.mark.parametrize("module", ["", *(f".{room}" for room in LIGHT_ROOMS)])
def test_importing_a_light_room_pulls_in_nothing_heavy(module: str) -> None:
    loaded = f"set(sys.modules) & set({HEAVY!r})"
    assert run(f"import sys, {NAME}{module}; print(sorted({loaded}))") == "[]"


@pytest.mark.parametrize("name", nni_spaceevo.__all__)
def test_every_public_name_is_found_when_it_is_asked_for(name: str) -> None:
    assert getattr(nni_spaceevo, name) is not None
    assert name in dir(nni_spaceevo)


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'nni_spaceevo' has no attribute 'nothing'"):
        _ = nni_spaceevo.nothing


# ---- what is never done -----------------------------------------------------------------------


def calls(path: Path) -> Iterator[tuple[ast.Call, str]]:
    """Every call with its dotted name, aliases resolved: `np.load` is `numpy.load`."""
    aliases: dict[str, str] = {}
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            aliases |= {a.asname: a.name for a in node.names if a.asname}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            aliases |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Call):
            first, _, rest = ast.unparse(node.func).partition(".")
            yield node, ".".join(filter(None, [aliases.get(first, first), rest]))


def unsafe(call: ast.Call, name: str) -> bool:
    """Whether a call can run code that lies in the file it reads."""
    given = {k.arg: getattr(k.value, "value", None) for k in call.keywords}
    match name:
        case "torch.load":
            return given.get("weights_only") is not True
        case "numpy.load":
            return given.get("allow_pickle", False) is not False
        case "yaml.load" | "yaml.load_all" | "yaml.unsafe_load" | "yaml.full_load":
            return True
    return name.endswith(".read_pickle")


@each_file
def test_no_pickle_and_no_unsafe_file_is_ever_read(path: Path) -> None:
    allowed = PICKLE_CALLS.get(ident(path), set())
    for line, module in imported_modules(path):
        known = bool(allowed) and module == "pickle"
        assert known or module.split(".")[0] not in PICKLES, (
            f"{ident(path)}:{line} imports {module}"
        )
    used = {name for _, name in calls(path) if name.startswith("pickle.")}
    assert used == allowed, f"{ident(path)} calls {used}"
    for call, name in calls(path):
        assert not unsafe(call, name), f"{ident(path)}:{call.lineno} calls {ast.unparse(call)}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import torch\ntorch.load(f)", True),
        ("import torch\ntorch.load(f, weights_only=False)", True),
        ("import torch\ntorch.load(f, weights_only=True)", False),
        ("from torch import load\nload(f)", True),
        ("import yaml as y\ny.load(f)", True),
        ("import yaml\nyaml.safe_load(f)", False),
        ("import numpy as np\nnp.load(f, allow_pickle=True)", True),
        ("import numpy as np\nnp.load(f)", False),
        ("import pandas as pd\npd.read_pickle(f)", True),
    ],
    ids=lambda value: value.rpartition("\n")[2] if isinstance(value, str) else "",
)
def test_the_check_above_knows_unsafe_calls(text: str, expected: bool, tmp_path: Path) -> None:
    path = tmp_path / "some.py"
    path.write_text(text)
    assert any(unsafe(call, name) for call, name in calls(path)) is expected


@each_file
def test_every_public_function_and_class_has_a_docstring(path: Path) -> None:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    public = [n for n in parse(path).body if isinstance(n, kinds) and not n.name.startswith("_")]
    bare = [f"{ident(path)}:{n.lineno} {n.name}" for n in public if not ast.get_docstring(n)]
    assert not bare
    assert ast.get_docstring(parse(path)), f"{ident(path)} does not say what it is"
