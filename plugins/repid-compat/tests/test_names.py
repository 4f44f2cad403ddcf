"""What can be imported from `repid`, and what is said of what cannot."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import repid
import repid_core

PLUGINS = ("repid_msgspec", "repid_pydantic", "repid_rabbitmq", "repid_redis", "repid_s3")


def test_every_name_of_core_is_here_and_the_same() -> None:
    assert {*repid_core.__all__, "__version__"} == set(repid.__all__)
    assert repid.Job is repid_core.Job
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


def test_a_plugin_that_fails_by_itself_says_what_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "repid_s3.py").write_text("import a_library_that_is_not_there\n")
    done = subprocess.run(
        [sys.executable, "-c", "from repid import S3BucketBroker"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr.endswith("ModuleNotFoundError: No module named 'a_library_that_is_not_there'\n")


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
