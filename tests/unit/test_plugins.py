from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from attrs import field, frozen

from repid_core import hookspecs
from repid_core.abc import Converter, Serializer
from repid_core.errors import PluginLoadError, SerializationError, SettingsError, UnknownBackendError
from repid_core.hookspecs import Backend
from repid_core.plugins import Kind, PluginInfo, Plugins, forget_plugins, plugins

pytestmark = pytest.mark.usefixtures("nothing_but_core")

Install = Callable[..., None]

BACKEND_HOOKS: list[tuple[Kind[Any], str]] = [
    (Kind.MESSAGE_BROKER, "repid_register_message_brokers"),
    (Kind.BUCKET_BROKER, "repid_register_bucket_brokers"),
    (Kind.SERIALIZER, "repid_register_serializers"),
    (Kind.CONVERTER, "repid_register_converters"),
    (Kind.MIDDLEWARE, "repid_register_middlewares"),
]


class Text(Serializer):
    name = "text"
    content_type = "text/plain"

    def dumps(self, value: Any) -> bytes:
        return str(value).encode()

    def loads(self, data: bytes) -> Any:
        return data.decode()


class Loose(Converter):
    def convert_inputs(self, value: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (), dict(value)

    def convert_outputs(self, value: Any) -> Any:
        return value


def loose() -> type[Converter]:
    return Loose


@frozen
class Settings:
    url: str = "default"


@frozen
class Required:
    url: str = field()


class Watcher:
    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings


def gives(hook: str, *backends: str) -> str:
    """The source of a plugin whose hook gives these expressions."""
    return f"@hookimpl\ndef {hook}():\n    return [{', '.join(backends)}]\n"


def middlewares(*names: str) -> str:
    return gives("repid_register_middlewares", *(f"Backend({name!r}, object)" for name in names))


def serializers(name: str, *content_types: str) -> str:
    factory = f"{__name__}:Text"
    return gives("repid_register_serializers", f"Backend({name!r}, {factory!r}, content_types={content_types!r})")


@pytest.mark.parametrize(("kind", "hook"), BACKEND_HOOKS)
def test_every_hook_brings_backends_of_its_kind(install: Install, kind: Kind[Any], hook: str) -> None:
    install("repid-one", {"one": "plugin_one"}, plugin_one=gives(hook, "Backend('one', 'a:b', summary='first')"))
    found = Plugins()
    assert found.backend(kind, "one") == Backend("one", "a:b", summary="first")
    assert found.backend(kind, "one") in found.backends(kind)
    for other, _ in BACKEND_HOOKS:
        if other is not kind:
            with pytest.raises(UnknownBackendError, match=f"no {other} 'one': 'one' of repid-one 1.0 is a {kind}; available: "):
                found.backend(other, "one")


def test_the_tested_hooks_are_all_there_are() -> None:
    specs = {name for name in vars(hookspecs) if name.startswith("repid_register_")}
    assert specs == {hook for _, hook in BACKEND_HOOKS} | {"repid_register_commands"}
    assert all(getattr(hookspecs, name).__doc__ for name in specs)


def test_choosing_a_name_imports_no_other_plugin(install: Install) -> None:
    install("repid-one", {"one": "plugin_one"}, plugin_one=middlewares("one"))
    install("repid-two", {"two": "plugin_two"}, plugin_two=middlewares("two"))
    Plugins().backend(Kind.MIDDLEWARE, "one")
    assert "plugin_one" in sys.modules
    assert "plugin_two" not in sys.modules


def test_an_object_of_a_module_can_be_the_plugin(install: Install) -> None:
    source = """
        class Hooks:
            @hookimpl
            def repid_register_middlewares(self):
                yield Backend("one", object)
        hooks = Hooks()
    """
    install("repid-one", {"one": "plugin_one:hooks"}, plugin_one=source)
    assert Plugins().backend(Kind.MIDDLEWARE, "one").name == "one"


COUNTING = """
    calls = []
    @hookimpl
    def repid_register_middlewares():
        calls.append(1)
        return [Backend("redis-like", object), Backend("valkey-like", object)]
"""


def test_a_module_of_several_names_is_asked_once(install: Install) -> None:
    install("repid-kv", {"redis-like": "plugin_kv", "valkey-like": "plugin_kv"}, plugin_kv=COUNTING)
    found = Plugins()
    found.backend(Kind.MIDDLEWARE, "redis-like")
    found.backend(Kind.MIDDLEWARE, "valkey-like")
    assert [backend.name for backend in found.backends(Kind.MIDDLEWARE)] == ["redis-like", "valkey-like"]
    assert [info.names for info in found.report() if info.distribution == "repid-kv"] == [("redis-like", "valkey-like")]
    assert importlib.import_module("plugin_kv").calls == [1]


def test_threads_that_come_first_together_load_a_plugin_once(install: Install) -> None:
    install("repid-kv", {"redis-like": "plugin_kv", "valkey-like": "plugin_kv"}, plugin_kv=COUNTING)
    forget_plugins()
    start, got = threading.Barrier(8), []

    def choose() -> None:
        start.wait()
        got.append((plugins(), plugins().backend(Kind.MIDDLEWARE, "redis-like")))

    threads = [threading.Thread(target=choose) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    forget_plugins()
    assert len(got) == 8
    assert len({id(found) for found, _ in got}) == 1
    assert importlib.import_module("plugin_kv").calls == [1]


def test_plugins_are_found_once_until_forgotten(install: Install) -> None:
    forget_plugins()
    before = plugins()
    assert plugins() is before
    install("repid-one", {"one": "plugin_one"}, plugin_one=middlewares("one"))
    forget_plugins()
    assert plugins().backend(Kind.MIDDLEWARE, "one")
    forget_plugins()


BROKEN = {
    "import": ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
    "exit": ("raise SystemExit('bye')", "SystemExit: bye"),
    "several lines": ("raise RuntimeError('one\\ntwo')", "RuntimeError: one two"),
    "misspelt": (
        gives("repid_register_mesage_brokers"),
        "there is no hook 'repid_register_mesage_brokers', did you mean 'repid_register_message_brokers'?",
    ),
    "unmarked": (
        "def repid_register_middlewares():\n    return []",
        "it has no hook: mark its functions with @repid_core.hookimpl",
    ),
    "raises": (
        "@hookimpl\ndef repid_register_converters():\n    raise KeyError('x')",
        "repid_register_converters failed: KeyError: 'x'",
    ),
    "no list": (
        "@hookimpl\ndef repid_register_middlewares():\n    return Backend('one', object)",
        "repid_register_middlewares failed: TypeError: 'Backend' object is not iterable",
    ),
    "no backend": (
        gives("repid_register_middlewares", "'one'"),
        "repid_register_middlewares gives 'one', which is no Backend",
    ),
    "newer api": (
        gives("repid_register_middlewares", "Backend('one', object, api=2)"),
        "its middleware 'one' is for plugin interface 2, newer than repid-core's 1: upgrade repid-core",
    ),
    "older api": (
        gives("repid_register_middlewares", "Backend('one', object, api=0)"),
        "its middleware 'one' is for plugin interface 0, older than repid-core's 1: upgrade repid-broken",
    ),
    "twice": (middlewares("one", "one"), "its middleware 'one' is there twice"),
    "no entry point": (
        middlewares("one", "two"),
        "its middleware 'two' has no entry point: add two = \"plugin_broken\" to [project.entry-points.repid]",
    ),
    "bad backend": (
        gives("repid_register_middlewares", "Backend('One', object)"),
        (
            "repid_register_middlewares failed: ValueError: 'One' is no name for a backend: "
            "use lower-case letters and digits, joined by '-', '_' or '.'"
        ),
    ),
}


@pytest.mark.parametrize(("source", "problem"), BROKEN.values(), ids=BROKEN)
def test_a_broken_plugin_harms_nobody_and_is_named(install: Install, source: str, problem: str) -> None:
    install("repid-broken", {"one": "plugin_broken"}, version="0.3", plugin_broken=source)
    install("repid-sound", {"sound": "plugin_sound"}, plugin_sound=middlewares("sound"))
    found = Plugins()
    assert [backend.name for backend in found.backends(Kind.MIDDLEWARE)] == ["sound"]
    with pytest.raises(PluginLoadError) as caught:
        found.backend(Kind.MIDDLEWARE, "one")
    assert str(caught.value) == (
        f"no middleware 'one': repid-broken 0.3 is installed but failed to load: {problem}; available: sound"
    )
    assert caught.value.__cause__ is not None
    info = next(info for info in found.report() if info.distribution == "repid-broken")
    assert info == PluginInfo("repid-broken", "0.3", "plugin_broken", ("one",), {}, f"installed but failed to load: {problem}")


def test_a_hook_with_an_unknown_argument_is_named(install: Install) -> None:
    source = "@hookimpl\ndef repid_register_middlewares(config):\n    return []"
    install("repid-broken", {"one": "plugin_broken"}, plugin_broken=source)
    with pytest.raises(PluginLoadError, match=r"hook 'repid_register_middlewares'.* repid_register_middlewares\(config\)"):
        Plugins().backend(Kind.MIDDLEWARE, "one")


def test_a_hook_of_later_versions_may_be_marked_optional(install: Install) -> None:
    later = "@hookimpl(optionalhook=True)\ndef repid_register_dashboards():\n    return []\n"
    install("repid-one", {"one": "plugin_one"}, plugin_one=later + middlewares("one"))
    assert Plugins().backend(Kind.MIDDLEWARE, "one")


def test_an_entry_point_that_no_hook_gives(install: Install) -> None:
    install("repid-one", {"one": "plugin_one", "two": "plugin_one"}, plugin_one=middlewares("one"))
    with pytest.raises(UnknownBackendError) as caught:
        Plugins().backend(Kind.MIDDLEWARE, "two")
    assert str(caught.value) == (
        "no middleware 'two': repid-one 1.0 has an entry point 'two', but no hook gives it; available: one"
    )


@pytest.mark.parametrize(
    ("kind", "name", "advice"),
    [
        (Kind.MESSAGE_BROKER, "rabbitmq", "pip install repid-rabbitmq"),
        (Kind.MESSAGE_BROKER, "amqp", "pip install repid-rabbitmq"),
        (Kind.BUCKET_BROKER, "s3", "pip install repid-s3"),
        (Kind.SERIALIZER, "msgspec-json", "pip install repid-msgspec"),
        (Kind.CONVERTER, "pydantic", "pip install repid-pydantic"),
        (Kind.MIDDLEWARE, "prometheus", "pip install repid-prometheus"),
        (Kind.MIDDLEWARE, "metric", "did you mean 'metrics'?"),
        (Kind.BUCKET_BROKER, "redsi", "did you mean 'redis' (pip install repid-redis)?"),
        (Kind.MIDDLEWARE, "tracing", "install the plugin that offers it; by convention it is called repid-tracing"),
        (Kind.MIDDLEWARE, "repid-x:tracing", "pip install repid-x"),
        (Kind.MIDDLEWARE, "repid-x:metrics", "'metrics' of repid-metrics 1.0 is a middleware"),
    ],
)
def test_an_unknown_name_says_what_to_install_or_correct(install: Install, kind: Kind[Any], name: str, advice: str) -> None:
    install("repid-metrics", {"metrics": "plugin_metrics"}, plugin_metrics=middlewares("metrics"))
    with pytest.raises(UnknownBackendError) as caught:
        Plugins().backend(kind, name)
    assert str(caught.value).startswith(f"no {kind} {name!r}: {advice}; available: ")


def test_two_distributions_of_one_name(install: Install) -> None:
    install("repid-one", {"same": "plugin_one"}, plugin_one=middlewares("same"))
    install("Repid_Two", {"same": "plugin_two"}, version="2.1", plugin_two=middlewares("same"))
    found = Plugins()
    with pytest.raises(PluginLoadError) as caught:
        found.backend(Kind.MIDDLEWARE, "same")
    assert str(caught.value) == (
        "repid-one 1.0 and repid-two 2.1 both offer middleware 'same': "
        "choose it as 'repid-one:same' or 'repid-two:same', or uninstall one"
    )
    one, two = found.backends(Kind.MIDDLEWARE)
    assert found.backend(Kind.MIDDLEWARE, "repid-one:same") is one
    assert found.backend(Kind.MIDDLEWARE, "repid-two:same") is two
    assert found.backend(Kind.MIDDLEWARE, "repid_two:same") is two
    assert Plugins(disabled=["repid-two:same"]).backend(Kind.MIDDLEWARE, "same") == one


def test_one_name_for_two_kinds_of_two_distributions_is_no_conflict(install: Install) -> None:
    install("repid-one", {"same": "plugin_one"}, plugin_one=middlewares("same"))
    install("repid-two", {"same": "plugin_two"}, plugin_two=serializers("same"))
    assert Plugins().backend(Kind.MIDDLEWARE, "same").factory is object
    assert Plugins().build(Kind.SERIALIZER, "same").name == "text"


def test_a_broken_plugin_leaves_its_name_to_a_sound_one(install: Install) -> None:
    install("repid-one", {"same": "plugin_one"}, plugin_one="import no_such_module")
    install("repid-two", {"same": "plugin_two"}, plugin_two=middlewares("same"))
    assert Plugins().backend(Kind.MIDDLEWARE, "same")


@pytest.mark.parametrize("disabled", ["one", "repid-one", "repid-one:one", " x , one "])
def test_the_environment_leaves_plugins_out(install: Install, monkeypatch: pytest.MonkeyPatch, disabled: str) -> None:
    monkeypatch.setenv("REPID_DISABLE_PLUGINS", disabled)
    install("repid-one", {"one": "plugin_one"}, plugin_one=middlewares("one"))
    found = Plugins()
    with pytest.raises(UnknownBackendError) as caught:
        found.backend(Kind.MIDDLEWARE, "one")
    assert str(caught.value) == ("no middleware 'one': repid-one 1.0 is left out by REPID_DISABLE_PLUGINS; available: none")
    assert [info.problem for info in found.report() if info.names == ("one",)] == ["left out by REPID_DISABLE_PLUGINS"]
    assert "plugin_one" not in sys.modules
    assert Plugins(disabled=()).backend(Kind.MIDDLEWARE, "one")


def test_one_name_of_several_can_be_left_out(install: Install) -> None:
    install("repid-kv", {"redis-like": "plugin_kv", "valkey-like": "plugin_kv"}, plugin_kv=COUNTING)
    found = Plugins(disabled=["redis-like"])
    assert [backend.name for backend in found.backends(Kind.MIDDLEWARE)] == ["valkey-like"]


def test_a_scheme_that_is_a_name_loads_that_plugin_alone(install: Install) -> None:
    install("repid-one", {"one": "plugin_one"}, plugin_one=middlewares("one"))
    source = gives("repid_register_bucket_brokers", "Backend('two', 'a:b', url_schemes=('two', 'twos'))")
    install("repid-two", {"two": "plugin_two"}, plugin_two=source)
    found = Plugins()
    assert found.for_scheme(Kind.BUCKET_BROKER, "two").name == "two"
    assert "plugin_one" not in sys.modules
    assert found.for_scheme(Kind.BUCKET_BROKER, "twos").name == "two"
    assert "plugin_one" in sys.modules


def test_of_two_backends_of_one_plugin_the_namesake_of_a_scheme_is_chosen(install: Install) -> None:
    backends = [f"Backend({name!r}, 'a:b', url_schemes=('kv', 'valkv'))" for name in ("kv", "valkv")]
    install("repid-kv", {"kv": "plugin_kv", "valkv": "plugin_kv"}, plugin_kv=gives("repid_register_bucket_brokers", *backends))
    found = Plugins()
    assert [found.for_scheme(Kind.BUCKET_BROKER, scheme).name for scheme in ("kv", "valkv")] == ["kv", "valkv"]


def test_cores_own_plugins_are_listed_first(install: Install) -> None:
    install("a-text", {"text": "plugin_text"}, plugin_text=serializers("text"))
    assert [backend.name for backend in Plugins().backends(Kind.SERIALIZER)] == ["json", "text"]
    assert [info.distribution for info in Plugins().report()][-1] == "a-text"


def test_an_unknown_scheme_says_what_to_install(install: Install) -> None:
    install("repid-bad", {"bad": "plugin_bad"}, plugin_bad="1 / 0")
    two = gives("repid_register_bucket_brokers", "Backend('two', 'a:b', url_schemes=('two', 'twos'))")
    install("repid-two", {"two": "plugin_two"}, plugin_two=two)
    with pytest.raises(UnknownBackendError) as caught:
        Plugins().for_scheme(Kind.BUCKET_BROKER, "rediss")
    text = str(caught.value)
    assert text.startswith("no bucket broker for rediss:// URLs: pip install repid-redis; ")
    assert "repid-bad 1.0 is installed but failed to load: ZeroDivisionError: division by zero; " in text
    assert text.endswith("two, twos")


def test_two_claims_of_one_scheme(install: Install) -> None:
    for name in ("one", "two"):
        backend = f"Backend({name!r}, 'a:b', url_schemes=('same',))"
        install(f"repid-{name}", {name: f"plugin_{name}"}, **{f"plugin_{name}": gives("repid_register_bucket_brokers", backend)})
    with pytest.raises(PluginLoadError, match="both offer bucket broker for same:// URLs: choose it as 'repid-one:one' or"):
        Plugins().for_scheme(Kind.BUCKET_BROKER, "same")


def test_bytes_are_read_by_the_serializer_that_claims_their_content_type(install: Install) -> None:
    install("repid-text", {"text": "plugin_text"}, plugin_text=serializers("text", "text/plain", "application/json"))
    found = Plugins()
    serializer = found.for_content_type("text/plain")
    assert serializer.loads(b"abc") == "abc"
    assert found.for_content_type("text/plain") is serializer


def test_cores_own_serializer_comes_first_and_loads_no_other(install: Install) -> None:
    install("a-text", {"text": "plugin_text"}, plugin_text=serializers("text", "application/json"))
    assert not isinstance(Plugins().for_content_type("application/json"), Text)
    assert "plugin_text" not in sys.modules


def test_a_content_type_that_nobody_reads(install: Install) -> None:
    install("repid-bad", {"bad": "plugin_bad"}, plugin_bad="import no_such_module")
    with pytest.raises(SerializationError) as caught:
        Plugins().for_content_type("application/x-none")
    assert str(caught.value) == (
        "nothing here reads content type 'application/x-none': install the serializer that the producer uses; "
        "repid-bad 1.0 is installed but failed to load: ModuleNotFoundError: No module named 'no_such_module'"
    )


def test_build_takes_a_backend_record() -> None:
    build = Plugins().build
    assert build(Kind.SERIALIZER, Backend("text", Text)).dumps(1) == b"1"
    assert build(Kind.CONVERTER, Backend("loose", f"{__name__}:Loose")) is Loose
    assert build(Kind.CONVERTER, Backend("loose", loose)) is Loose
    assert build(Kind.MIDDLEWARE, Backend("watcher", Watcher)).settings is None


def test_build_makes_default_settings_or_takes_given_ones() -> None:
    backend = Backend("watcher", Watcher, settings=Settings)
    assert Plugins().build(Kind.MIDDLEWARE, backend).settings == Settings("default")
    assert Plugins().build(Kind.MIDDLEWARE, backend, Settings("mine")).settings == Settings("mine")


def test_modules_are_imported_when_a_backend_is_built(install: Install) -> None:
    source = gives("repid_register_middlewares", "Backend('one', 'broker_one:Broker', settings='broker_one:Settings')")
    broker = """
        class Settings:
            pass
        class Broker:
            def __init__(self, settings):
                self.settings = settings
    """
    install("repid-one", {"one": "plugin_one"}, plugin_one=source, broker_one=broker)
    found = Plugins()
    backend = found.backend(Kind.MIDDLEWARE, "one")
    assert "broker_one" not in sys.modules
    made = found.build(Kind.MIDDLEWARE, "one")
    assert type(made).__name__ == "Broker"
    assert type(made.settings) is found.settings_class(Kind.MIDDLEWARE, backend)


@pytest.mark.parametrize(
    ("backend", "settings", "error", "text"),
    [
        (
            Backend("x", "no_such_module:X"),
            None,
            PluginLoadError,
            (
                "serializer 'x' cannot be used: importing 'no_such_module:X' failed: "
                "ModuleNotFoundError: No module named 'no_such_module'"
            ),
        ),
        (
            Backend("x", Text, settings="json:Settings"),
            None,
            PluginLoadError,
            (
                "serializer 'x' cannot be used: importing 'json:Settings' failed: "
                "AttributeError: module 'json' has no attribute 'Settings'"
            ),
        ),
        (
            Backend("x", lambda: 3),
            None,
            PluginLoadError,
            "serializer 'x' cannot be used: its factory gives a int, which is no serializer",
        ),
        (
            Backend("x", Text, settings=Required),
            None,
            SettingsError,
            "serializer 'x' needs settings: Required.__init__() missing 1 required positional argument: 'url'",
        ),
        (Backend("x", Text), Settings(), SettingsError, "serializer 'x' takes no settings, not Settings"),
        (
            Backend("x", Text, settings=Required),
            Settings(),
            SettingsError,
            "serializer 'x' takes an instance of Required, not Settings",
        ),
    ],
)
def test_what_cannot_be_built(backend: Backend[Any], settings: object, error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        Plugins().build(Kind.SERIALIZER, backend, settings)
    assert text in str(caught.value)


def test_a_converter_must_be_a_class() -> None:
    with pytest.raises(PluginLoadError, match=r"converter 'x' cannot be used: its factory gives a Loose, which is no converter"):
        Plugins().build(Kind.CONVERTER, Backend[Any]("x", lambda: Loose(print)))


COMMANDS = """
@hookimpl
def repid_register_commands():
    import click
    return [click.Command()]
"""


def test_plugins_add_commands_and_a_failing_one_adds_none(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    click = ModuleType("click")
    click.Command = type("Command", (), {})  # type: ignore[attr-defined]
    install("repid-one", {"one": "plugin_one"}, plugin_one=COMMANDS)
    wrong = gives("repid_register_commands", "3") + middlewares("two")
    install("repid-two", {"two": "plugin_two"}, plugin_two=wrong)
    install("repid-three", {"three": "plugin_three"}, plugin_three="import no_such_module")
    found = Plugins()
    assert found.backend(Kind.MIDDLEWARE, "two")
    monkeypatch.setitem(sys.modules, "click", click)
    assert [type(command).__name__ for command in found.commands()] == ["Command"]
    problems = {info.distribution: info.problem for info in found.report()}
    assert problems["repid-one"] is None
    assert problems["repid-two"] == ("installed but failed to load: repid_register_commands gives 3, which is no click.Command")
    assert found.backend(Kind.MIDDLEWARE, "two"), "its backends can be used all the same"


def test_commands_are_not_asked_for_unless_wanted(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "click", None)
    install("repid-one", {"one": "plugin_one"}, plugin_one=COMMANDS + middlewares("one"))
    assert [info.problem for info in Plugins().report() if info.distribution == "repid-one"] == [None]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"name": "Bad Name"}, ValueError),
        ({"name": ""}, ValueError),
        ({"name": "a:b"}, ValueError),
        ({"factory": "no.colon"}, ValueError),
        ({"factory": 3}, TypeError),
        ({"settings": "no.colon"}, ValueError),
        ({"url_schemes": "redis"}, TypeError),
        ({"content_types": ["application/json"]}, TypeError),
    ],
)
def test_a_malformed_backend_is_refused(arguments: dict[str, Any], error: type[Exception]) -> None:
    fields: dict[str, Any] = {"name": "x", "factory": object} | arguments
    with pytest.raises(error):
        Backend[Any](**fields)
