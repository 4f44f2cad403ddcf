"""What `repid plugin test` tests: the backends of one plugin, with the settings that a user gives."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from attrs import evolve, frozen

from repid_core.config import SECTIONS, Section, load
from repid_core.errors import ConfigError, PluginLoadError, SettingsError, UnknownBackendError
from repid_core.hookspecs import Backend
from repid_core.plugins import Kind, PluginInfo, plugins
from repid_core.settings import Loose, keys_of, unknown


@frozen
class Target:
    """A plugin, and its backends, each with a path of its own such as "message broker 'acme'"."""

    distribution: str
    version: str
    sections: Sequence[Section[Any]]


def find(name: str, config: Path | None, url: str | None, settings: Mapping[str, str]) -> Target:
    """Find the plugin and structure the settings of its backends.

    Args:
        name: Its distribution, or one of its backends.
        config: A file whose settings are used for those of its backends that it chooses; None for the defaults.
        url: Where its brokers' server is; goes before the file's.
        settings: More of them, as text, for all of its backends that know the key; they go before all else.

    Raises:
        ConfigError: There is no such plugin, it cannot be used, or the settings are not valid.
    """
    infos = _plugins(name)
    chosen = [(info, kind, backend) for info in infos for kind, backend in _backends(info, name)]
    known = {kind: keys_of(plugins().settings_class(kind, backend)) for _, kind, backend in chosen}
    every = sorted({key for keys in known.values() for key in keys})
    for key in settings:
        if key not in every:
            raise ConfigError(f"--set {key}: no backend of {infos[0].distribution} has this setting: {unknown(key, every)}")
    if url is not None and "url" not in every:
        raise ConfigError(f"--url {url}: no backend of {infos[0].distribution} has the setting url: leave it out")
    if not chosen:
        raise ConfigError(f"{infos[0].distribution} {infos[0].version} brings no backend, and there is nothing to test")
    sections = [
        _section(info, kind, backend, known[kind], _given(config, kind, backend), url, settings) for info, kind, backend in chosen
    ]
    return Target(infos[0].distribution, infos[0].version, sections)


def check_prefix(target: Target) -> None:
    """Let no test near what is in use: a broker has a prefix for the tests, or is inside this process.

    Raises:
        ConfigError: It has a server, and no prefix.
    """
    for section in target.sections:
        keys = keys_of(type(section.settings))
        if section.kind in (Kind.MESSAGE_BROKER, Kind.BUCKET_BROKER) and "url" in keys and "prefix" not in keys:
            raise ConfigError(
                f"{section.path} has no setting prefix, so that its tests would delete what is where its url points: "
                "name a place that is for tests alone with --url, and say --no-prefix",
            )


def _plugins(name: str) -> list[PluginInfo]:
    """The modules of the distribution that is meant."""
    report = plugins().report()
    wanted = re.sub(r"[-_.]+", "-", name).lower()
    found = [info for info in report if info.distribution == wanted] or [info for info in report if name in info.names]
    if not found:
        known = sorted({text for info in report for text in (info.distribution, *info.names)})
        close = get_close_matches(name, known, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"pip install it first; installed: {', '.join(known)}"
        raise UnknownBackendError(f"no plugin {name!r} is installed: {hint}")
    if len({info.distribution for info in found}) > 1:
        who = " and ".join(sorted({info.distribution for info in found}))
        raise UnknownBackendError(f"{who} both offer {name!r}: name the distribution")
    for info in found:
        if info.problem is not None:
            raise PluginLoadError(f"{info.distribution} {info.version} is {info.problem}")
    return found


def _backends(info: PluginInfo, name: str) -> Iterator[tuple[Kind[Any], Backend[Any]]]:
    """Its backends; only those of a name, if that is what was asked for."""
    for kind, backends in info.backends.items():
        for backend in backends:
            if name not in info.names or backend.name == name:
                yield kind, backend


def _given(config: Path | None, kind: Kind[Any], backend: Backend[Any]) -> dict[str, Any]:
    """What a file sets for a backend, if it chooses it."""
    if config is None:
        return {}
    paths = {path for path, of in SECTIONS.items() if of is kind} or {"middlewares"}
    for section in load(config, only=paths).sections.values():
        if section.kind is kind and section.backend.factory == backend.factory:
            return {key: given.value for key, given in section.given.items()}
    return {}


def _section(
    info: PluginInfo,
    kind: Kind[Any],
    backend: Backend[Any],
    known: Sequence[str],
    given: Mapping[str, Any],
    url: str | None,
    settings: Mapping[str, str],
) -> Section[Any]:
    own = {"backend": f"{info.distribution}:{backend.name}", **given}
    own |= {"url": url} if url is not None and "url" in known else {}
    own |= {key: Loose(value) for key, value in settings.items() if key in known}
    path = next((path for path, of in SECTIONS.items() if of is kind), "middlewares")
    table: dict[str, Any] = {path: [own] if path == "middlewares" else own}
    try:
        [section] = load(table, {}, only={path}).sections.values()
    except SettingsError as error:  # that there is a mapping is nothing that the user knows
        raise SettingsError([problem.replace(" (the mapping)", "") for problem in error.problems]) from error
    return evolve(section, path=f"{kind} {backend.name!r}")
