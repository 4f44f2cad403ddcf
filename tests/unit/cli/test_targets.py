"""What names on the command line mean, and what is said of those that mean nothing."""

from __future__ import annotations

import pytest

from repid_core.cli import targets
from repid_core.cli.group import Failure


@pytest.mark.parametrize("target", ["shop:connection", "shop:app", "shop:make"])
def test_a_connection_is_an_object_or_what_a_function_gives(shop, target):
    assert targets.connection_of(target) is shop.connection


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("shop", "'shop' names no connection: write module:attribute, such as app.tasks:router"),
        ("shop:", "'shop:' names no connection: write module:attribute, such as app.tasks:router"),
        ("shop:conection", "'shop:conection' names no connection: shop has no 'conection'; there is shop:connection, shop:app"),
        ("shop:router", "'shop:router' is a Router, and no connection"),
        ("shop:wrong", "'shop:wrong' is a function that gives an int, and no connection"),
        ("shop:fail", "'shop:fail': making the connection failed: OSError: out of paper; --debug shows where"),
        ("broken:app", "'broken:app': importing broken failed: ZeroDivisionError: division by zero; --debug shows where"),
        (
            "lacking:app",
            "'lacking:app': importing lacking failed: ModuleNotFoundError: No module named 'shopp'; --debug shows where",
        ),
    ],
)
def test_what_is_wrong_is_said(shop, tmp_path, target, text):
    (tmp_path / "broken.py").write_text("1 / 0")
    (tmp_path / "lacking.py").write_text("import shopp")
    with pytest.raises(Failure) as failure:
        targets.connection_of(target)
    assert (failure.value.message, failure.value.exit_code) == (text, 2)


def test_a_module_that_is_not_there_is_told_from_one_that_it_needs(shop, tmp_path):
    with pytest.raises(Failure, match=f"there is no module 'shopp' in {tmp_path}, nor is one installed"):
        targets.routers(["shopp.tasks:router"])


def test_the_current_directory_is_searched(shop, tmp_path, monkeypatch):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "deep_shop.py").write_text("from repid_core import Router\nclass Box:\n    router = Router()")
    monkeypatch.chdir(tmp_path / "inner")
    assert len(targets.routers(["deep_shop:Box.router"])) == 1


def test_two_ways_to_say_the_connection_are_one_too_many(shop):
    result = shop("stats", "--config", "repid.toml", status=2)
    assert result.output == "Error: --app and --config both say which connection to use: give one\n"


def test_the_configuration_is_what_is_used_otherwise(shop, tmp_path):
    (tmp_path / "repid.toml").write_text('[message_broker]\nbackend = "memory"\n')
    assert shop("stats", app=False).stderr == "No queues.\n"


def test_the_environment_may_say_the_application(shop, monkeypatch):
    monkeypatch.setenv("REPID_APP", "shop:app")
    assert shop("stats", app=False).stderr == "No queues.\n"
