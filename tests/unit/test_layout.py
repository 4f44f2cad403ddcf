"""The plan of the house: which module may import which, what core may not need, how large and how slow to import it may be."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path

import pytest

import repid_core

PACKAGE = Path(repid_core.__file__).parent

# From the top down; a room imports only from rows above its own. Rooms of one row do not know each other.
ROWS = [
    "errors",
    "clock",
    "data",
    "retry schedule",
    "codec",
    "dependencies",
    "abc",
    "hookspecs",
    "defaults",
    "settings",
    "plugins",
    "middleware",
    "payload",
    "executors",
    "router",
    "config",
    "connection",
    "app",
    "message",
    "queue",
    "job",
    "processing",
    "health",
    "worker",
    "memory json_serializer cattrs_converter",
    "__init__",
    "testing",
    "cli",
    "__main__",
]
ROOMS = {room: row for row, rooms in enumerate(ROWS) for room in rooms.split()}
MODULES = sorted(PACKAGE.rglob("*.py"))
CORE = [path for path in MODULES if path.relative_to(PACKAGE).parts[0] not in ("testing", "cli")]
FORBIDDEN = {
    *("aio_pika", "boto3", "botocore", "click", "msgspec", "opentelemetry", "prometheus_client", "pydantic", "pytest", "redis"),
    *("rich", "uvloop", "watchfiles"),
}


def name_of(path: Path) -> str:
    return ".".join(("repid_core", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def imports(path: Path, *, nested: bool = True) -> Iterator[str]:
    """The modules that a file imports: everywhere, or at its top level alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = name_of(path) if path.name == "__init__.py" else name_of(path).rpartition(".")[0]
    for node in ast.walk(tree) if nested else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package)
            # `from repid_core import x` is an import of the room x, if there is one
            yield from {name if is_module(name := f"{base}.{alias.name}") else base for alias in node.names}


def is_module(name: str) -> bool:
    path = PACKAGE.parent.joinpath(*name.split("."))
    return name.startswith("repid_core.") and (path.is_dir() or path.with_suffix(".py").is_file())


def lines_of_code(path: Path) -> int:
    """Lines that are neither blank, nor comments, nor docstrings."""
    source = path.read_text(encoding="utf-8")
    docstrings = {
        line
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    lines = enumerate(map(str.strip, source.splitlines()), 1)
    return sum(1 for number, line in lines if line and not line.startswith("#") and number not in docstrings)


def test_every_room_has_its_place() -> None:
    assert {room_of(name_of(path)) for path in MODULES} - set(ROOMS) == set()


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_room_imports_only_rooms_above_it(path: Path) -> None:
    """Also under TYPE_CHECKING and inside functions; inside a room of several modules, everything goes."""
    room = room_of(name_of(path))
    wrong = {
        module
        for module in imports(path)
        if module.partition(".")[0] == "repid_core" and room_of(module) != room and ROOMS[room_of(module)] >= ROOMS[room]
    }
    assert wrong == set()


@pytest.mark.parametrize("path", CORE, ids=name_of)
def test_core_needs_neither_plugins_nor_their_libraries(path: Path) -> None:
    needed = {module.partition(".")[0] for module in imports(path)}
    assert {
        module for module in needed if module in FORBIDDEN or (module.startswith("repid") and module != "repid_core")
    } == set()
    if room_of(name_of(path)) not in ("hookspecs", "plugins"):
        assert "pluggy" not in needed


BUILT_IN = {"memory", "json_serializer", "cattrs_converter"}  # plugins like any other, but for where they live


def test_core_stays_small() -> None:
    """Lines of code; what explains it may be as long as it has to be."""
    sizes = {True: 0, False: 0}
    for path in CORE:
        sizes[room_of(name_of(path)) in BUILT_IN] += lines_of_code(path)
    assert sizes[False] < 4_700
    assert sizes[True] < 1_450


def test_the_package_is_typed() -> None:
    assert (PACKAGE / "py.typed").is_file()


IMPORT = f"""
import sys, time
start = time.perf_counter()
import asyncio
library = time.perf_counter()
import repid_core
print(library - start, time.perf_counter() - start)
print(*sorted({FORBIDDEN} & set(sys.modules)))
"""


def test_importing_core_is_quick_and_brings_no_library(tmp_path: Path) -> None:
    """The best of several runs, the first of which leaves compiled files for the others, as installing does.

    The limit is a tenth of a second; where importing asyncio alone takes a third of that, the machine is slow or busy, and the
    limit is thrice what asyncio takes.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment["PYTHONPYCACHEPREFIX"] = str(tmp_path)
    libraries, runs = [], []
    for _ in range(6):
        done = subprocess.run(
            [sys.executable, "-c", IMPORT], env=environment, check=True, capture_output=True, text=True, timeout=30
        )
        seconds, brought = done.stdout.split("\n")[:2]
        assert brought == ""
        library, whole = map(float, seconds.split())
        libraries.append(library)
        runs.append(whole)
    assert min(runs) < max(0.1, 3 * min(libraries))
