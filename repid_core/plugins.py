"""Plugins: which are installed, which one is meant by a name, and what is wrong with the others.

A name is looked up among the entry points first, and only the plugin behind it is imported. A plugin that cannot be used is
left out, and named when somebody asks for it or lists all; those who do not need it never notice.
"""

from __future__ import annotations

import functools
import os
import re
import sys
import threading
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, TypeVar

import pluggy
from attrs import frozen

from repid_core import hookspecs
from repid_core.abc import BucketBroker, Converter, MessageBroker, Serializer
from repid_core.errors import PluginLoadError, SerializationError, SettingsError, UnknownBackendError
from repid_core.hookspecs import ENTRY_POINT_GROUP, Backend

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

T = TypeVar("T")

_APIS: Final = range(1, 2)  # the values of Backend.api that this version understands
_CORE: Final = "repid-core"
_DISABLE: Final = "REPID_DISABLE_PLUGINS"
_HOOKS: Final = [name for name in vars(hookspecs) if name.startswith("repid_register_")]


class Kind(Generic[T]):
    """What there is to choose by name, for example `Kind.SERIALIZER`; `T` is what building one gives."""

    MESSAGE_BROKER: ClassVar[Kind[MessageBroker]]
    BUCKET_BROKER: ClassVar[Kind[BucketBroker]]
    SERIALIZER: ClassVar[Kind[Serializer]]
    CONVERTER: ClassVar[Kind[type[Converter]]]
    MIDDLEWARE: ClassVar[Kind[Any]]

    def __init__(self, text: str, base: type, known: Mapping[str, str]) -> None:
        self.text, self.base = text, base
        self.known = known  # names and URL schemes that people look for, with the distribution that brings them

    def __str__(self) -> str:
        return self.text

    @property
    def hook(self) -> str:
        return f"repid_register_{self.text.replace(' ', '_')}s"

    def fits(self, made: object) -> bool:
        """Whether an object is one of these; of converters there are classes."""
        if self is Kind.CONVERTER:
            return isinstance(made, type) and issubclass(made, self.base)
        return isinstance(made, self.base)


_KNOWN: Final = {"memory": _CORE, "redis": "repid-redis", "rediss": "repid-redis", "sqlite": "repid-sqlite"}
_AMQP: Final = dict.fromkeys(("rabbitmq", "amqp", "amqps"), "repid-rabbitmq")
Kind.MESSAGE_BROKER = Kind("message broker", MessageBroker, _KNOWN | _AMQP)
Kind.BUCKET_BROKER = Kind("bucket broker", BucketBroker, _KNOWN | {"s3": "repid-s3"})
Kind.SERIALIZER = Kind("serializer", Serializer, {"json": _CORE, "msgpack": "repid-msgspec", "msgspec-json": "repid-msgspec"})
Kind.CONVERTER = Kind("converter", Converter, {"cattrs": _CORE, "pydantic": "repid-pydantic"})
_OBSERVERS: Final = {"opentelemetry": "repid-opentelemetry", "prometheus": "repid-prometheus"}
Kind.MIDDLEWARE = Kind("middleware", object, _OBSERVERS)
_KINDS: Final[tuple[Kind[Any], ...]] = tuple(kind for kind in vars(Kind).values() if isinstance(kind, Kind))


@frozen
class PluginInfo:
    """One installed plugin, for people to read; `problem` says why it, or its commands, cannot be used."""

    distribution: str  # normalised, as in "repid-redis"
    version: str
    module: str  # what the entry points name
    names: tuple[str, ...]
    backends: Mapping[Kind[Any], tuple[Backend[Any], ...]]
    problem: str | None
    commands: tuple[str, ...] = ()  # once `Plugins.commands` was called


class _Plugin:
    """The object behind one or more entry points of a distribution. Loading keeps what goes wrong, and raises nothing."""

    def __init__(self, distribution: str, version: str, entry: EntryPoint) -> None:
        self.distribution, self.version, self.entry = distribution, version, entry
        self.names: list[str] = []
        self.disabled: list[str] = []
        self.backends: dict[Kind[Any], dict[str, Backend[Any]]] = {kind: {} for kind in _KINDS}
        self.commands: list[Any] | None = None
        self.hooks: pluggy.HookRelay | None = None
        self.error: BaseException | None = None
        self.loaded = False

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}"

    @property
    def problem(self) -> str | None:
        if self.error is not None:
            return f"installed but failed to load: {_text(self.error)}"
        return f"left out by {_DISABLE}" if self.disabled else None

    def load(self) -> None:
        if self.loaded or not self.names:
            return
        self.loaded = True
        try:
            self.hooks = _register(self.entry.load())
            self.backends = {kind: self._named(kind) for kind in _KINDS}
        except (Exception, SystemExit) as error:  # noqa: BLE001 — whatever its import runs into is this plugin's own trouble
            self.error = error

    def call(self, hook: str) -> list[Any]:
        """What the plugin's implementation of the hook gives; nothing if it has none."""
        try:
            return [item for given in getattr(self.hooks, hook)() for item in given]
        except (Exception, SystemExit) as error:
            raise PluginLoadError(f"{hook} failed: {_text(error)}") from error

    def add_commands(self) -> list[Any]:
        """What it adds to the command line; nothing if it failed to load, or in this."""
        if self.commands is None:
            self.commands = []
            try:
                self.commands = self._commands()
            except PluginLoadError as error:
                self.error = error
        return self.commands

    def _commands(self) -> list[Any]:
        commands = [] if self.hooks is None else self.call("repid_register_commands")
        click = sys.modules.get("click")  # who made a command has imported it
        for command in commands:
            if click is None or not isinstance(command, click.Command):
                raise PluginLoadError(f"repid_register_commands gives {command!r}, which is no click.Command")
        return commands

    def _named(self, kind: Kind[Any]) -> dict[str, Backend[Any]]:
        found: dict[str, Backend[Any]] = {}
        for backend in self.call(kind.hook):
            if not isinstance(backend, Backend):
                raise PluginLoadError(f"{kind.hook} gives {backend!r}, which is no Backend")
            what = f"its {kind} {backend.name!r}"
            if backend.api not in _APIS:
                newer = backend.api > _APIS[-1]
                relation = f"newer than {_CORE}'s {_APIS[-1]}" if newer else f"older than {_CORE}'s {_APIS[0]}"
                upgrade = _CORE if newer else self.distribution
                raise PluginLoadError(f"{what} is for plugin interface {backend.api}, {relation}: upgrade {upgrade}")
            if backend.name in found:
                raise PluginLoadError(f"{what} is there twice")
            if backend.name not in (*self.names, *self.disabled):
                line = f'{backend.name} = "{self.entry.value}"'
                raise PluginLoadError(f"{what} has no entry point: add {line} to [project.entry-points.{ENTRY_POINT_GROUP}]")
            found[backend.name] = backend
        return {name: backend for name, backend in found.items() if name in self.names}


_Offers = list[tuple[_Plugin, Backend[Any]]]


class Plugins:
    """The installed plugins, found once; each is loaded when it is first needed. Threads may share it.

    To choose a backend, give its name; or "distribution:name", if two distributions offer the same name.
    """

    def __init__(self, *, disabled: Collection[str] | None = None) -> None:
        """Read the entry points, and import nothing.

        Args:
            disabled: Plugins to leave out: "name", "distribution" or "distribution:name". None for those in the environment
                variable REPID_DISABLE_PLUGINS, separated by commas.
        """
        from importlib.metadata import entry_points  # noqa: PLC0415 — a tenth of what `import repid_core` may take

        out = {name.strip() for name in (os.environ.get(_DISABLE, "").split(",") if disabled is None else disabled)}
        found: dict[tuple[str, str], _Plugin] = {}
        for entry in entry_points(group=ENTRY_POINT_GROUP):
            distribution, version = (_normal(entry.dist.name), entry.dist.version) if entry.dist else ("unknown", "")
            plugin = found.setdefault((distribution, entry.value), _Plugin(distribution, version, entry))
            left_out = not out.isdisjoint((entry.name, distribution, f"{distribution}:{entry.name}"))
            (plugin.disabled if left_out else plugin.names).append(entry.name)
        self._plugins = sorted(found.values(), key=lambda plugin: (plugin.distribution != _CORE, str(plugin)))
        self._serializers: dict[str, Serializer] = {}
        self._lock = threading.RLock()  # a plugin may ask for another one while it is imported

    def backend(self, kind: Kind[T], name: str) -> Backend[T]:
        """The record of a backend, loading the plugin of that name and no other.

        Raises:
            UnknownBackendError: No plugin offers it; says what to install or to correct.
            PluginLoadError: Its plugin cannot be used, or two distributions offer it.
        """
        distribution, _, own = name.rpartition(":")
        called = [plugin for plugin in self._plugins if own in (*plugin.names, *plugin.disabled)]
        meant = [plugin for plugin in called if _normal(distribution) in ("", plugin.distribution)]
        if offers := self._offers(kind, [plugin for plugin in meant if own in plugin.names], "name", own):
            return _only(offers, f"{kind} {own!r}")
        available = sorted({backend.name for backend in self.backends(kind)})
        reasons = _problems(meant) or [_hint(kind, name, available, [plugin for plugin in called if own in plugin.names])]
        cause = next((plugin.error for plugin in meant if plugin.error), None)
        error = UnknownBackendError if cause is None else PluginLoadError
        raise error(f"no {kind} {name!r}: {'; '.join(reasons)}; available: {', '.join(available) or 'none'}") from cause

    def backends(self, kind: Kind[T]) -> list[Backend[T]]:
        """All that can be chosen, core's own first. Loads all plugins."""
        return [backend for plugin in self._loaded(self._plugins) for backend in plugin.backends[kind].values()]

    def for_scheme(self, kind: Kind[T], scheme: str) -> Backend[T]:
        """The broker whose URLs begin with `scheme`: of the plugin of that name, or else, loading all, of any.

        Raises:
            UnknownBackendError: No plugin claims it; says what to install, and which plugins cannot be used.
            PluginLoadError: Two distributions claim it.
        """
        namesakes = [plugin for plugin in self._plugins if scheme in plugin.names]
        for plugins in (namesakes, self._plugins):
            if offers := self._offers(kind, plugins, "url_schemes", scheme):
                return _only(offers, f"{kind} for {scheme}:// URLs")
        reasons = [f"pip install {kind.known[scheme]}"] if scheme in kind.known and not namesakes else []
        reasons += _problems(self._plugins)
        available = sorted({known for backend in self.backends(kind) for known in backend.url_schemes})
        reasons.append(f"available: {', '.join(available) or 'none'}")
        raise UnknownBackendError(f"no {kind} for {scheme}:// URLs: {'; '.join(reasons)}")

    def for_content_type(self, content_type: str) -> Serializer:
        """A serializer that reads `content_type`, with its default settings: core's own, or else, loading all, of any.

        Raises:
            SerializationError: No plugin claims it; says which plugins cannot be used.
        """
        if (made := self._serializers.get(content_type)) is not None:
            return made
        for plugins in ([plugin for plugin in self._plugins if plugin.distribution == _CORE], self._plugins):
            if offers := self._offers(Kind.SERIALIZER, plugins, "content_types", content_type):
                return self._serializers.setdefault(content_type, self.build(Kind.SERIALIZER, offers[0][1]))
        reasons = ["install the serializer that the producer uses", *_problems(self._plugins)]
        raise SerializationError(f"nothing here reads content type {content_type!r}: {'; '.join(reasons)}")

    def settings_class(self, kind: Kind[T], backend: Backend[T]) -> type | None:
        """The class of a backend's settings; None if it takes none.

        Raises:
            PluginLoadError: It cannot be imported.
        """
        return None if backend.settings is None else _resolve(kind, backend, backend.settings)

    def build(self, kind: Kind[T], backend: str | Backend[T], settings: object | None = None) -> T:
        """Make what was chosen, by its name or record.

        Args:
            kind: What it is.
            backend: Its name or its record.
            settings: An instance of its settings class; None for the defaults.

        Raises:
            UnknownBackendError: As `backend` does.
            PluginLoadError: As `backend` does; and if it cannot be imported, or is not what its kind must be.
            SettingsError: A setting has no default, or these are not the backend's settings. What the factory thinks of
                their values, it raises itself.
        """
        if isinstance(backend, str):
            backend = self.backend(kind, backend)
        cls, what = self.settings_class(kind, backend), f"{kind} {backend.name!r}"
        made: Any = _resolve(kind, backend, backend.factory)
        if settings is None and cls is not None:
            try:
                settings = cls()
            except TypeError as error:
                raise SettingsError([f"{what} needs settings: {error}"]) from error
        if settings is not None and not isinstance(settings, cls or ()):
            wanted = "no settings" if cls is None else f"an instance of {cls.__name__}"
            raise SettingsError([f"{what} takes {wanted}, not {type(settings).__name__}"])
        if not (kind is Kind.CONVERTER and kind.fits(made)):
            made = made() if cls is None else made(settings)
        if not kind.fits(made):
            raise PluginLoadError(f"{what} cannot be used: its factory gives a {type(made).__name__}, which is no {kind}")
        return made  # type: ignore[no-any-return]

    def commands(self) -> list[Any]:
        """The subcommands that plugins add. One whose hook fails, or gives something else, adds none: see `report`."""
        return [command for plugin in self._loaded(self._plugins) for command in plugin.add_commands()]

    def report(self) -> list[PluginInfo]:
        """Every installed plugin, core's own first, with what is wrong with it. Loads all."""
        return [
            PluginInfo(
                plugin.distribution,
                plugin.version,
                plugin.entry.value,
                tuple(sorted(plugin.names + plugin.disabled)),
                {kind: tuple(named.values()) for kind, named in plugin.backends.items() if named},
                plugin.problem,
                tuple(getattr(command, "name", None) or "" for command in plugin.commands or ()),
            )
            for plugin in self._loaded(self._plugins)
        ]

    def _loaded(self, plugins: list[_Plugin]) -> list[_Plugin]:
        with self._lock:
            for plugin in plugins:
                plugin.load()
        return plugins

    def _offers(self, kind: Kind[Any], plugins: list[_Plugin], attribute: str, wanted: str) -> _Offers:
        """Backends whose name is `wanted`, or whose schemes or content types have it; a namesake first."""
        offers = [
            (plugin, backend)
            for plugin in self._loaded(plugins)
            for backend in plugin.backends[kind].values()
            if wanted == (value := getattr(backend, attribute)) or (isinstance(value, tuple) and wanted in value)
        ]
        return sorted(offers, key=lambda offer: offer[1].name != wanted)


_make = functools.cache(Plugins)
_making = threading.Lock()


def plugins() -> Plugins:
    """This process's plugins, found on first use. Tests that install some call `forget_plugins` first."""
    with _making:  # functools.cache lets two threads make two
        return _make()


def forget_plugins() -> None:
    """Let the next call of `plugins` look again at what is installed and at the environment; imported modules stay."""
    _make.cache_clear()


def _register(plugin: object) -> pluggy.HookRelay:
    # One manager for each plugin: its mistakes do not reach the others, and results need not be sorted out again.
    manager = pluggy.PluginManager(ENTRY_POINT_GROUP)
    manager.add_hookspecs(hookspecs)
    manager.register(plugin)
    if not (callers := manager.get_hookcallers(plugin)):
        raise PluginLoadError("it has no hook: mark its functions with @repid_core.hookimpl")
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as error:  # its text has a path, and no suggestion
        name = next(caller.name for caller in callers if not caller.has_spec())
        close = get_close_matches(name, _HOOKS, 1)
        raise PluginLoadError(f"there is no hook {name!r}" + (f", did you mean {close[0]!r}?" if close else "")) from error
    return manager.hook


def _only(offers: _Offers, what: str) -> Backend[Any]:
    if len({plugin.distribution for plugin, _ in offers}) > 1:
        who = " and ".join(str(plugin) for plugin, _ in offers)
        names = " or ".join(f"'{plugin.distribution}:{backend.name}'" for plugin, backend in offers)
        raise PluginLoadError(f"{who} both offer {what}: choose it as {names}, or uninstall one")
    return offers[0][1]


def _hint(kind: Kind[Any], name: str, available: list[str], others: list[_Plugin]) -> str:
    """What to do about a name that nothing here offers; `others` have the name for another kind, or in another distribution."""
    distribution, _, own = name.rpartition(":")
    if others:
        kinds = " and ".join(str(other) for other, named in others[0].backends.items() if own in named)
        return (
            f"{own!r} of {others[0]} is a {kinds}" if kinds else f"{others[0]} has an entry point {own!r}, but no hook gives it"
        )
    if own in kind.known or distribution:
        return f"pip install {distribution or kind.known[own]}"
    if close := get_close_matches(own, [*available, *kind.known], 1):
        install = "" if close[0] in available else f" (pip install {kind.known[close[0]]})"
        return f"did you mean {close[0]!r}{install}?"
    return f"install the plugin that offers it; by convention it is called repid-{own}"


def _resolve(kind: Kind[Any], backend: Backend[Any], target: Any) -> Any:
    if not isinstance(target, str):
        return target
    from pkgutil import resolve_name  # noqa: PLC0415 — as above

    try:
        return resolve_name(target)
    except Exception as error:
        raise PluginLoadError(f"{kind} {backend.name!r} cannot be used: importing {target!r} failed: {_text(error)}") from error


def _problems(plugins: list[_Plugin]) -> list[str]:
    return [f"{plugin} is {plugin.problem}" for plugin in plugins if plugin.problem]


def _normal(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _text(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, PluginLoadError) else f"{type(error).__name__}: {text}"
