from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from repid_core import Connection, InMemoryBucketBroker, InMemoryMessageBroker
from repid_core.config import load
from repid_core.errors import ConfigError, SettingsError
from repid_core.plugins import forget_plugins

pytestmark = pytest.mark.usefixtures("nothing_but_core")

Install = Callable[..., None]

KV = """
from datetime import timedelta
from attrs import field, frozen
from repid_core import InMemoryBucketBroker, InMemoryMessageBroker, Size
from repid_core.cattrs_converter import CattrsConverter
from repid_core.json_serializer import JsonSerializer

def _positive(settings, attribute, value):
    if value <= timedelta(0):
        raise ValueError(f"{attribute.name}={value!r}: give more than nothing")

@frozen
class Settings:
    url: str = "kv://localhost"
    lease: timedelta = field(default=timedelta(seconds=15), kw_only=True, validator=_positive)
    batch: int = field(default=10, kw_only=True)
    room: Size | None = field(default=None, kw_only=True)
    password: str | None = field(default=None, kw_only=True)
    days: tuple[int, ...] = field(default=(), kw_only=True)

class Messages(InMemoryMessageBroker):
    def __init__(self, settings):
        super().__init__()
        self.settings = settings
        if settings.url == "kv://refused":
            raise ValueError("the factory refuses")

class Buckets(InMemoryBucketBroker):
    def __init__(self, settings):
        super().__init__()
        self.settings = settings

@frozen
class Indent:
    indent: int = 0

class Pretty(JsonSerializer):
    def __init__(self, settings):
        self.settings = settings

@frozen
class Name:
    name: str = "watcher"

class Watcher:
    def __init__(self, settings):
        self.settings = settings
    def after_enqueue(self, envelope): ...

class Plain:
    def after_enqueue(self, envelope): ...

@hookimpl
def repid_register_message_brokers():
    return [Backend("kv", Messages, settings=Settings, url_schemes=("kv", "kvs"))]

@hookimpl
def repid_register_bucket_brokers():
    return [Backend("kv", Buckets, settings=Settings, url_schemes=("kv", "kvs"))]

@hookimpl
def repid_register_serializers():
    return [Backend("pretty", Pretty, settings=Indent)]

@hookimpl
def repid_register_converters():
    return [Backend("loose", CattrsConverter)]

@hookimpl
def repid_register_middlewares():
    return [Backend("watcher", Watcher, settings=Name), Backend("plain", Plain)]
"""
NAMES = dict.fromkeys(("kv", "pretty", "loose", "watcher", "plain"), "plugin_kv")


@pytest.fixture(autouse=True)
def fresh(install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A plugin with settings of its own, and nothing of this machine's."""
    install("repid-kv", NAMES, plugin_kv=KV)
    for name in [name for name in __import__("os").environ if name.startswith("REPID_")]:
        monkeypatch.delenv(name)
    forget_plugins()
    yield
    forget_plugins()


def problems(source: Any = None, environ: Mapping[str, str] | None = None, **options: Any) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        load(source, environ or {}, **options)
    return caught.value.problems


def problem(source: Any = None, environ: Mapping[str, str] | None = None, **options: Any) -> str:
    [text] = problems(source, environ, **options)
    return text


FULL = """
serializer = "pretty"
args_bucket_threshold = "64 KiB"
middlewares = ["plain", { backend = "watcher", name = "eagle" }]

[message_broker]
backend = "kv"
url = "kv://host"
lease = "1h 30m"

[args_bucket_broker]
url = "kvs://args"
room = "10 MB"

[results_bucket_broker]
backend = "memory"

[converter]
backend = "loose"
"""


def test_everything_by_name(tmp_path: Path) -> None:
    file = tmp_path / "app.toml"
    file.write_text(FULL)
    connection: Any = Connection.from_config(file, environ={})
    kv = sys.modules["plugin_kv"]
    assert isinstance(connection.message_broker, kv.Messages)
    assert connection.message_broker.settings == kv.Settings("kv://host", lease=kv.timedelta(minutes=90))
    assert connection.args_bucket_broker.settings == kv.Settings("kvs://args", room=10_000_000)
    assert type(connection.results_bucket_broker) is InMemoryBucketBroker
    assert connection.converter is kv.CattrsConverter
    assert isinstance(connection.payloads.serializer, kv.Pretty)
    assert connection.args_bucket_threshold == 65_536
    assert connection.middleware.after_enqueue is not None
    assert [name for _, name in middlewares(connection)] == ["Plain", "Watcher"]


def middlewares(connection: Any) -> list[tuple[Any, str]]:
    found = [listener.__self__ for listener, _, _ in connection.middleware.after_enqueue.listeners]
    return [(each, type(each).__name__) for each in found]


def test_tables_of_middlewares() -> None:
    table = {"message_broker": "memory", "middlewares": [{"backend": "watcher", "name": "a"}, {"backend": "watcher"}]}
    connection = Connection.from_config(table, environ={})
    assert [watcher.settings.name for watcher, _ in middlewares(connection)] == ["a", "watcher"]


def test_a_section_may_be_a_name_or_a_url() -> None:
    loaded = load({"message_broker": "kv://host?lease=3s", "args_bucket_broker": "memory"}, {})
    assert loaded.sections["message_broker"].settings.lease.seconds == 3
    assert loaded.sections["args_bucket_broker"].backend.name == "memory"


def test_the_scheme_of_a_url_tells_the_backend() -> None:
    assert load({"message_broker": {"url": "kvs://host"}}, {}).sections["message_broker"].backend.name == "kv"
    assert load({"message_broker": {"url": "memory://"}}, {}).sections["message_broker"].backend.name == "memory"
    assert load({"message_broker": {"backend": "kv"}}, {}).sections["message_broker"].settings.url == "kv://localhost"


def test_a_scheme_that_contradicts_the_backend_is_an_error() -> None:
    assert problem({"message_broker": {"backend": "memory", "url": "kv://me:hunter2@host"}}) == (
        "message_broker.url (the mapping): 'kv://me:***@host' is not for backend 'memory' (the mapping), which takes memory://: "
        "correct one of the two, or leave out the backend"
    )


def test_the_query_of_a_url_is_settings() -> None:
    settings = (
        load({"message_broker": {"url": "kv://host/a?lease=3s&batch=7&days=1,2&room=1+KiB"}}, {})
        .sections["message_broker"]
        .settings
    )
    assert (settings.url, settings.lease.seconds, settings.batch, settings.days, settings.room) == (
        "kv://host/a",
        3,
        7,
        (1, 2),
        1024,
    )
    assert problem({"message_broker": {"url": "kv://host?leese=3s"}}) == (
        "message_broker.leese (the mapping, url): unknown key, did you mean 'lease'?"
    )
    assert problem({"message_broker": {"url": "kv://host?lease=3s", "lease": "4s"}}) == (
        "message_broker.lease (the mapping): it is there twice, in the url and beside it: leave one out"
    )


def test_a_password_that_is_not_quoted_stays_the_backends_matter() -> None:
    assert load({"message_broker": {"url": "kv://me:a?b@host"}}, {}).sections["message_broker"].settings.url == "kv://me:a?b@host"


def test_a_url_with_an_address_for_a_backend_that_has_none() -> None:
    assert problem({"message_broker": "memory://here"}) == (
        "message_broker.url (the mapping): message broker 'memory' takes nothing after the :// of 'memory://here': leave it out"
    )


def test_buckets_of_equal_settings_share_one_broker() -> None:
    connection = Connection.from_config(
        {"message_broker": "memory", "args_bucket_broker": "memory", "results_bucket_broker": "memory"}, environ={}
    )
    assert connection.args_bucket_broker is connection.results_bucket_broker
    apart: Any = Connection.from_urls("memory://", args="kv://a", results="kv://b")
    assert apart.args_bucket_broker is not apart.results_bucket_broker


# -- where it is found -------------------------------------------------------------------------------------------------------


def test_the_nearest_file_wins_and_repid_toml_goes_before_pyproject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tmp_path / "project"
    (inside := project / "src" / "app").mkdir(parents=True)
    monkeypatch.chdir(inside)
    (tmp_path / "repid.toml").write_text("message_broker = 'kv'")
    assert load(None, {}).file == tmp_path / "repid.toml"
    (project / "pyproject.toml").write_text("[tool.repid]\nmessage_broker = 'memory'")
    (project / "src" / "pyproject.toml").write_text("[tool.other]")
    found = load(None, {})
    assert found.file == project / "pyproject.toml"
    assert found.source == str(found.file)
    assert found.sections["message_broker"].backend.name == "memory"
    (project / "repid.toml").write_text("message_broker = 'kv'")
    assert load(None, {}).file == project / "repid.toml"


def test_the_search_ends_at_the_root_of_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (inside := tmp_path / "project" / "app").mkdir(parents=True)
    (tmp_path / "project" / ".git").mkdir()
    (tmp_path / "repid.toml").write_text("message_broker = 'memory'")
    monkeypatch.chdir(inside)
    with pytest.raises(ConfigError) as caught:
        load(None, {})
    assert str(caught.value) == (
        f"no configuration was found: neither repid.toml nor [tool.repid] in pyproject.toml is in {inside} or {inside.parent}; "
        "write one, name a file in REPID_CONFIG, or set REPID_MESSAGE_BROKER__URL"
    )


def test_the_search_ends_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (inside := tmp_path / "home" / "app").mkdir(parents=True)
    (tmp_path / "repid.toml").write_text("message_broker = 'memory'")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.chdir(inside)
    with pytest.raises(ConfigError, match="no configuration was found"):
        load(None, {})


def test_repid_config_names_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "repid.toml").write_text("message_broker = 'kv'")
    (tmp_path / "other.toml").write_text("message_broker = 'memory'")
    found = load(None, {"REPID_CONFIG": "other.toml"})
    assert found.sections["message_broker"].backend.name == "memory"
    assert found.source == "other.toml, named by REPID_CONFIG"
    assert load(None, {"REPID_CONFIG": ""}).sections["message_broker"].backend.name == "kv"
    with pytest.raises(ConfigError, match=r"^gone\.toml, named by REPID_CONFIG, cannot be read: No such file or directory$"):
        load(None, {"REPID_CONFIG": "gone.toml"})


def test_the_environment_alone_is_a_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".git").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REPID_MESSAGE_BROKER__URL", "memory://")
    assert type(Connection.from_config().message_broker) is InMemoryMessageBroker
    with pytest.raises(ConfigError, match="no configuration was found"):
        load(None, {"REPID_DISABLE_PLUGINS": "x", "REPID_REDIS_URL": "of somebody else"})


def test_files_that_cannot_be_used_say_why(tmp_path: Path) -> None:
    for name, text, why in (
        ("a.toml", "x = ", f"{tmp_path / 'a.toml'} is no valid TOML: Invalid value (at end of document)"),
        ("pyproject.toml", "[tool.x]", f"{tmp_path / 'pyproject.toml'} has no [tool.repid]: add it, or name another file"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ConfigError) as caught:
            load(tmp_path / name, {})
        assert str(caught.value) == why
    with pytest.raises(ConfigError) as caught:
        load("redis://:hunter2@host", {})
    assert str(caught.value) == "'redis://:***@host' is a URL, not a file: use Connection.from_urls"


# -- the environment ---------------------------------------------------------------------------------------------------------


def test_the_environment_overrides() -> None:
    table = {
        "message_broker": {"url": "kv://file?batch=3", "lease": "1 s"},
        "args_bucket_broker": {"url": "kv://file?batch=3"},
        "results_bucket_broker": {"backend": "kv", "lease": "1 s"},
    }
    environ = {
        "REPID_MESSAGE_BROKER__URL": "kv://environment",
        "REPID_MESSAGE_BROKER__DAYS": "1, 2",
        "REPID_ARGS_BUCKET_BROKER__BATCH": "4",
        "REPID_RESULTS_BUCKET_BROKER": "memory",
        "REPID_SERIALIZER": "pretty",
        "REPID_SERIALIZER__INDENT": "2",
        "REPID_ARGS_BUCKET_THRESHOLD": "1 KiB",
        "REPID_MIDDLEWARES": "plain, watcher",
    }
    loaded = load(table, environ)
    assert loaded.args_bucket_threshold == 1024
    sections = loaded.sections
    assert set(sections) == {*table, "serializer", "middlewares[0]", "middlewares[1]"}
    messages = sections["message_broker"].settings
    assert (messages.url, messages.lease.seconds, messages.batch, messages.days) == ("kv://environment", 1, 10, (1, 2))
    assert sections["message_broker"].given["url"].origin == "REPID_MESSAGE_BROKER__URL"
    assert sections["args_bucket_broker"].settings.batch == 4
    assert sections["results_bucket_broker"].backend.name == "memory"
    assert sections["serializer"].settings.indent == 2


def test_overrides_that_there_are_not() -> None:
    assert problem({"message_broker": "kv"}, {"REPID_MESSAGE_BROKER__LEESE": "3 s"}) == (
        "message_broker.leese (REPID_MESSAGE_BROKER__LEESE): unknown key, did you mean 'lease'?"
    )
    assert problem({"message_broker": "kv"}, {"REPID_MESSAGE_BROKR__URL": "kv://h"}) == (
        "message_brokr.url (REPID_MESSAGE_BROKR__URL): unknown key, did you mean 'message_broker'?"
    )
    assert problem({"message_broker": "kv"}, {"REPID_MESSAGE_BROKER_URL": "kv://h"}) == (
        "message_broker_url (REPID_MESSAGE_BROKER_URL): unknown key, did you mean REPID_MESSAGE_BROKER__URL?"
    )
    assert problem({"message_broker": "kv"}, {"REPID_SERIALISER": "json"}) == (
        "serialiser (REPID_SERIALISER): unknown key, did you mean REPID_SERIALIZER?"
    )
    assert problem({"message_broker": "kv"}, {"REPID_MIDDLEWARES__0__NAME": "x"}) == (
        "middlewares.0__name (REPID_MIDDLEWARES__0__NAME): unknown key, they are set as a whole, as in a, b"
    )
    assert load(
        {"message_broker": "kv"}, {"REPID_CONFIG": "x", "REPID_DISABLE_PLUGINS": "y", "REPID_WHATEVER": "z", "OTHER__X": ""}
    )


def test_a_variable_of_the_wrong_type_is_named() -> None:
    assert problem({"message_broker": "kv"}, {"REPID_MESSAGE_BROKER__BATCH": "many"}) == (
        "message_broker.batch (REPID_MESSAGE_BROKER__BATCH): expected a whole number, got 'many'"
    )


def test_values_may_be_of_the_environment() -> None:
    table = {"message_broker": {"url": "kv://me:${PASSWORD}@${HOST}", "batch": "${BATCH}", "password": "$${x} $y ${PASSWORD}"}}
    settings = load(table, {"PASSWORD": "hunter2", "HOST": "host", "BATCH": "3"}).sections["message_broker"].settings
    assert (settings.url, settings.batch, settings.password) == ("kv://me:hunter2@host", 3, "${x} $y hunter2")
    literal = load({"message_broker": "kv"}, {"REPID_MESSAGE_BROKER__PASSWORD": "${x}"}).sections["message_broker"].settings
    assert literal == load({"message_broker": {"backend": "kv", "password": "$${x}"}}, {}).sections["message_broker"].settings, (
        "what comes from the environment is not read again"
    )


def test_a_variable_that_is_not_set_names_path_and_file(tmp_path: Path) -> None:
    file = tmp_path / "repid.toml"
    file.write_text(
        "message_broker = { backend = 'kv', url = '${A}', lease = 0 }\nmiddlewares = [{ backend = 'watcher', name = '${B}' }]"
    )
    assert [text.partition(" in the env")[0] for text in problems(file)] == [
        f"message_broker.url ({file}): ${{A}} is not set",
        f"middlewares[0].name ({file}): ${{B}} is not set",
        f"message_broker.lease ({file}): 0: give more than nothing",
    ]
    assert problems(file)[0].endswith("set it, or write $${ if the signs themselves are meant")
    for text in ("${", "${}", "${A B}", "${A", "${file:relative}"):
        assert problem({"message_broker": {"backend": "kv", "url": text}}, {"A": "a"}) == (
            "message_broker.url (the mapping): a ${ has no variable's name and }: "
            "write ${NAME}, ${file:/PATH}, or $${ for the signs themselves"
        )


def test_values_may_be_of_files(tmp_path: Path) -> None:
    secret, crlf = tmp_path / "password", tmp_path / "user"
    secret.write_bytes("hünter2 ${HOST}\n".encode())
    crlf.write_bytes(b"me\r\n")
    table = {"message_broker": {"url": f"kv://${{file:{crlf}}}@${{HOST}}", "password": f"${{file:{secret}}}"}}
    settings = load(table, {"HOST": "host"}).sections["message_broker"].settings
    assert (settings.url, settings.password) == ("kv://me@host", "hünter2 ${HOST}"), "what is in a file is not read again"


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe")
    for path, said in (
        (tmp_path / "none", "No such file or directory"),
        (tmp_path, "Is a directory"),
        (binary, "codec can't decode"),
    ):
        text = problem({"message_broker": {"backend": "kv", "password": f"${{file:{path}}}"}})
        assert text.startswith(f"message_broker.password (the mapping): ${{file:{path}}} cannot be read: ")
        assert said in text


# -- errors ------------------------------------------------------------------------------------------------------------------

AVAILABLE = "available: kv, memory"


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ({}, 'message_broker (the mapping): missing: for example [message_broker] with url = "memory://"'),
        (
            {"message_broker": {}},
            f'message_broker (the mapping): no backend is chosen: give backend = "…", or a url; {AVAILABLE}',
        ),
        (
            {"message_broker": "memory", "serializer": {"indent": 3}},
            'serializer (the mapping): no backend is chosen: give backend = "…"; available: json, pretty',
        ),
        ({"message_broker": 3}, "message_broker (the mapping): expected a table, or the name of a backend, got 3"),
        ({"message_broker": {"backend": 3}}, "message_broker.backend (the mapping): expected a text, got 3"),
        ({"message_broker": {"url": 3}}, "message_broker.url (the mapping): expected a text, got 3"),
        (
            {"message_broker": {"url": "me:hunter2@host"}},
            "message_broker.url (the mapping): it has no ://, so it tells no backend: write for example memory://, ",
        ),
        (
            {"message_broker": {"backend": "memroy"}},
            f"message_broker.backend (the mapping): no message broker 'memroy': did you mean 'memory'?; {AVAILABLE}",
        ),
        (
            {"message_broker": {"backend": "redis"}},
            f"message_broker.backend (the mapping): no message broker 'redis': pip install repid-redis; {AVAILABLE}",
        ),
        (
            {"message_broker": {"url": "rediss://me:hunter2@host"}},
            "message_broker.url (the mapping): no message broker for rediss:// URLs: pip install repid-redis; ",
        ),
        (
            {"message_broker": "memory", "converter": "json"},
            "converter.backend (the mapping): no converter 'json': 'json' of repid-core",
        ),
        (
            {"message_broker": "memory", "message_brokers": {}},
            "message_brokers (the mapping): unknown key, did you mean 'message_broker'?",
        ),
        (
            {"message_broker": "memory", "x": 1},
            (
                "x (the mapping): unknown key, there are message_broker, args_bucket_broker, results_bucket_broker, serializer, "
                "converter, middlewares, args_bucket_threshold"
            ),
        ),
        (
            {"message_broker": "memory", "serializer": {"backend": "json", "indent": 2}},
            "serializer.indent (the mapping): unknown key: serializer 'json' has no settings",
        ),
        (
            {"message_broker": "memory", "args_bucket_threshold": "64 K"},
            "args_bucket_threshold (the mapping): expected a size such as '64 KiB', or a number of bytes, got '64 K'",
        ),
        (
            {"message_broker": "memory", "args_bucket_threshold": -1},
            "args_bucket_threshold (the mapping): -1: give 0 or more bytes",
        ),
        (
            {"message_broker": "memory", "middlewares": "plain"},
            "middlewares (the mapping): expected a list of names and tables, got 'plain'",
        ),
        (
            {"message_broker": "memory", "middlewares": [3]},
            "middlewares[0] (the mapping): expected a table, or the name of a backend, got 3",
        ),
        (
            {"message_broker": "memory", "middlewares": ["plain", "plan"]},
            "middlewares[1].backend (the mapping): no middleware 'plan': did you mean 'plain'?; available: plain, watcher",
        ),
        (
            {"message_broker": {"backend": "kv", "lease": 0}},
            "message_broker.lease (the mapping): 0: give more than nothing",
        ),
        (
            {"message_broker": {"backend": "kv", "prefetch": 3}},
            "message_broker.prefetch (the mapping): unknown key, there are url, lease, batch, room, password, days",
        ),
    ],
)
def test_each_error_says_where_what_and_what_to_do(table: dict[str, Any], text: str) -> None:
    assert problem(table).startswith(text)


def test_plugins_that_cannot_be_used_are_named_with_the_path(install: Install) -> None:
    install("repid-broken", {"broken": "plugin_broken"}, plugin_broken="import plugin_that_is_missing")
    twin = "@hookimpl\ndef repid_register_bucket_brokers():\n    return [Backend('twin', object)]\n"
    install("repid-first", {"twin": "plugin_first"}, plugin_first=twin)
    install("repid-second", {"twin": "plugin_second"}, plugin_second=twin)
    lazy = twin.replace("'twin', object", "'lazy', 'missing_client:B', settings='missing_client:S'")
    install("repid-lazy", {"lazy": "plugin_lazy"}, plugin_lazy=lazy)
    forget_plugins()
    with pytest.raises(SettingsError) as caught:
        load({"message_broker": "broken", "args_bucket_broker": "twin", "results_bucket_broker": {"backend": "lazy", "x": 1}}, {})
    assert caught.value.problems == (
        (
            "message_broker.backend (the mapping): no message broker 'broken': repid-broken 1.0 is installed but failed to load: "
            f"ModuleNotFoundError: No module named 'plugin_that_is_missing'; {AVAILABLE}"
        ),
        (
            "args_bucket_broker.backend (the mapping): repid-first 1.0 and repid-second 1.0 both offer bucket broker 'twin': "
            "choose it as 'repid-first:twin' or 'repid-second:twin', or uninstall one"
        ),
        (
            "results_bucket_broker (the mapping): bucket broker 'lazy' cannot be used: importing 'missing_client:S' failed: "
            "ModuleNotFoundError: No module named 'missing_client'"
        ),
    )
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)
    assert load({"message_broker": "memory", "args_bucket_broker": "memory"}, {}), "who does not need them does not notice"


def test_settings_that_are_no_attrs_class(install: Install) -> None:
    hook = "@hookimpl\ndef repid_register_bucket_brokers():\n    return [Backend('odd', object, settings=dict)]\n"
    install("repid-odd", {"odd": "plugin_odd"}, plugin_odd=hook)
    forget_plugins()
    assert problem({"message_broker": "memory", "args_bucket_broker": "odd"}) == (
        "args_bucket_broker (the mapping): bucket broker 'odd' cannot be used: its settings, dict, are no attrs class"
    )


def test_every_error_at_once(tmp_path: Path) -> None:
    file = tmp_path / "repid.toml"
    file.write_text(
        "serialzer = 'json'\n"
        "[message_broker]\nurl = 'kv://me:hunter2@host'\nleese = '3 s'\nbatch = 'x'\npassword = 5\n"
        "[args_bucket_broker]\nbackend = 'memroy'\n"
    )
    with pytest.raises(SettingsError) as caught:
        load(file, {"REPID_MESSAGE_BROKER__LEASE": "0 s", "REPID_RESULTS_BUCKET_BROKER": "kv://h?room=much"})
    assert str(caught.value).splitlines() == [
        "invalid settings:",
        f"  serialzer ({file}): unknown key, did you mean 'serializer'?",
        f"  message_broker.leese ({file}): unknown key, did you mean 'lease'?",
        f"  message_broker.batch ({file}): expected a whole number, got 'x'",
        f"  message_broker.password ({file}): expected a text, got ***",
        "  message_broker.lease (REPID_MESSAGE_BROKER__LEASE): '0 s': give more than nothing",
        f"  args_bucket_broker.backend ({file}): no bucket broker 'memroy': did you mean 'memory'?; {AVAILABLE}",
        (
            "  results_bucket_broker.room (REPID_RESULTS_BUCKET_BROKER, url): expected a size such as '64 KiB', or a number of "
            "bytes or 'none', got 'much'"
        ),
    ]


def test_what_factories_refuse_has_its_path() -> None:
    with pytest.raises(SettingsError) as caught:
        Connection.from_config({"message_broker": "kv://refused"}, environ={})
    assert caught.value.problems == ("message_broker: the factory refuses",)
    assert isinstance(caught.value.__cause__, ValueError)


# -- for other programs ------------------------------------------------------------------------------------------------------


def test_one_section_can_be_had_alone() -> None:
    table = {"args_bucket_broker": {"backend": "kv", "lease": "3 s"}, "results_bucket_broker": "memroy", "x": 1}
    loaded = load(table, {}, only={"args_bucket_broker"})
    assert set(loaded.sections) == {"args_bucket_broker"}
    made = loaded.sections["args_bucket_broker"].build()
    assert made.settings.lease.seconds == 3
    assert problem(table, only={"results_bucket_broker"}).startswith("results_bucket_broker.backend")
    assert load(table, {}, only={"serializer"}).sections == {}


def test_nothing_that_people_see_of_it_has_secrets() -> None:
    loaded = load({"message_broker": {"url": "kv://me:hunter2@host", "password": "sesame", "batch": 3}}, {})
    section = loaded.sections["message_broker"]
    assert section.describe() == {"url": "'kv://me:***@host'", "password": "***", "batch": "3"}
    assert repr(section) == "<message_broker: message broker 'kv'(url='kv://me:***@host', password=***, batch=3)>"
    assert "kv" in repr(loaded)
    assert not any(secret in repr(loaded) + repr(section.given) for secret in ("hunter2", "sesame"))


# -- URLs --------------------------------------------------------------------------------------------------------------------


def test_a_connection_from_urls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPID_MESSAGE_BROKER__BATCH", "nonsense, of which nothing is asked here")
    kv = sys.modules.get("plugin_kv")
    connection: Any = Connection.from_urls(
        "kv://host?lease=1m",
        args="memory://",
        results="kvs://host/x?room=1KiB",
        serializer="pretty",
        args_bucket_threshold="1 KiB",
    )
    kv = sys.modules["plugin_kv"]
    assert connection.message_broker.settings == kv.Settings("kv://host", lease=kv.timedelta(minutes=1))
    assert type(connection.args_bucket_broker) is InMemoryBucketBroker
    assert connection.results_bucket_broker.settings == kv.Settings("kvs://host/x", room=1024)
    assert isinstance(connection.payloads.serializer, kv.Pretty)
    assert connection.args_bucket_threshold == 1024
    assert Connection.from_urls("memory://").results_bucket_broker is None


def test_urls_that_are_wrong_are_all_named_without_passwords() -> None:
    with pytest.raises(SettingsError) as caught:
        Connection.from_urls(
            "kv://me:hunter2@host?leese=1", args="kw://me:hunter2@host", results="memory", args_bucket_threshold="x"
        )
    assert caught.value.problems == (
        "results_bucket_broker (URL memory): it has no ://, so it is no URL: write for example memory://",
        "message_broker.leese (URL kv://me:***@host): unknown key, did you mean 'lease'?",
        "args_bucket_broker.url (URL kw://me:***@host): no bucket broker for kw:// URLs: available: kv, kvs, memory",
        "args_bucket_threshold: expected a size such as '64 KiB', or a number of bytes, got 'x'",
    )
