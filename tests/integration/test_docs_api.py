"""Every public name is on a page of the API reference."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.unit import test_plugin_api

pytestmark = pytest.mark.examples

ROOT = Path(__file__).parents[2]
PAGES = sorted(ROOT.glob("docs/reference/api/*.md"))
NAMES = [
    name for page in PAGES for block in re.findall(r"(?ms)^```api\n(.*?)^```$", page.read_text("utf-8")) for name in block.split()
]
CORE = [
    "repid_core",
    "repid_core.config",
    "repid_core.errors",
    "repid_core.memory",
    "repid_core.settings",
    "repid_core.testing",
    "repid_core.testing.conformance",
]
PLUGINS = sorted(path.parent.name for path in ROOT.glob("plugins/*/repid_*/__init__.py")) or sorted(
    path.name.replace("-", "_") for path in ROOT.glob("plugins/repid-*") if path.name != "repid-compat"
)


def value(name: str) -> Any:
    module, _, own = name.rpartition(".")
    return getattr(import_module(module), own)


def public(module: ModuleType) -> Iterator[str]:
    """What a module offers by its `__all__`, or else the classes and functions that it defines."""
    for name in getattr(module, "__all__", None) or vars(module):
        if hasattr(module, "__all__") or (
            not name.startswith("_") and test_plugin_api.belongs(getattr(module, name), module.__name__)
        ):
            yield f"{module.__name__}.{name}"


def test_no_name_is_there_twice() -> None:
    assert len(NAMES) == len(set(NAMES))


@pytest.mark.parametrize("module", [*CORE, *PLUGINS])
def test_every_public_name_is_on_a_page(module: str) -> None:
    described = [value(name) for name in NAMES]
    names = list(public(import_module(module)))
    assert names
    assert [name for name in names if not any(value(name) is each for each in described)] == []


@pytest.mark.parametrize("module", test_plugin_api.PUBLIC)
def test_what_plugins_are_written_against_is_on_a_page(module: str) -> None:
    described = [value(name) for name in NAMES]
    names = [
        line.split("(")[0].split(":")[0].removeprefix("async ").removeprefix("class ").removeprefix("def ")
        for line in "\n".join(test_plugin_api.of_module(module, test_plugin_api.PUBLIC[module])).splitlines()[1:]
        if not line.startswith(" ")
    ]
    assert names
    assert [name for name in names if not any(value(f"{module}.{name}") is each for each in described)] == []
