"""What can be imported from `repid`, and what is said of what cannot."""

from __future__ import annotations

import builtins
import importlib
import importlib.metadata
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import repid
import repid_core

PLUGINS = ("repid_msgspec", "repid_rabbitmq", "repid_redis", "repid_s3")


def test_every_name_of_core_is_here_and_the_same() -> None:
    assert {*repid_core.__all__, "__version__"} == set(repid.__all__)
    assert all(getattr(repid, name) is getattr(repid_core, name) for name in repid.__all__)


@pytest.mark.parametrize("plugin", PLUGINS)
def test_every_name_of_a_plugin_is_here_and_the_same(plugin: str) -> None:
    module = importlib.import_module(plugin)
    assert set(module.__all__) == set(repid._PLUGINS[plugin])
    for name in module.__all__:
        assert getattr(repid, name) is getattr(module, name)
        assert name in dir(repid)


@pytest.mark.parametrize("plugin", PLUGINS)
def test_a_plugin_that_is_not_installed_is_named(plugin: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, plugin, None)
    install = plugin.replace("_", "-")
    for name in repid._PLUGINS[plugin]:
        with pytest.raises(ImportError, match=f"^{name} comes with {install}, .* pip install {install}$"):
            exec(f"from repid import {name}")  # noqa: S102 — as users write it
        with pytest.raises(ImportError, match=f"pip install {install}$"):
            getattr(repid, name)
        assert name not in dir(repid)


def test_a_plugin_that_fails_by_itself_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "repid_redis", raising=False)
    monkeypatch.delitem(sys.modules, "repid_redis.message_broker", raising=False)
    monkeypatch.setitem(sys.modules, "repid_redis.message_broker", None)
    with pytest.raises(ModuleNotFoundError) as caught:
        repid.RedisMessageBroker  # noqa: B018 — it is imported when it is asked for
    assert caught.value.name == "repid_redis.message_broker"


def test_other_names_are_as_in_any_module() -> None:
    assert not hasattr(repid, "Something")
    with pytest.raises(ImportError, match="cannot import name 'Something' from 'repid'"):
        exec("from repid import Something")  # noqa: S102 — as users write it
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'repid\.something'"):
        importlib.import_module("repid.something")


def test_a_star_imports_no_client_library() -> None:
    program = (
        "from repid import *; import sys; Connection, Job, Worker; "
        "assert not {'redis', 'boto3', 'aio_pika', 'msgspec', 'repid_redis'} & set(sys.modules), sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=60)


def test_a_mixture_with_the_other_distribution_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "repid-1.6.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: repid\nVersion: 1.6.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.reload(repid)  # it is elsewhere, and so no mixture
    package = tmp_path / "repid"
    package.mkdir()
    source = Path(repid.__file__).read_text("utf-8")
    (package / "__init__.py").write_text(source, "utf-8")
    done = subprocess.run(
        [sys.executable, "-c", "import repid"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert "repid 1.6.0 and repid-compat are both installed" in done.stderr
    assert "pip uninstall repid repid-compat" in done.stderr


def test_the_reloaded_module_is_whole() -> None:
    module: ModuleType = importlib.import_module("repid")
    value: Any = module.Job
    assert value is repid_core.Job
    assert builtins.isinstance(value, type)
