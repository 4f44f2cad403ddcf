"""One run over what is configured: merges it, chooses the backends, structures their settings, collects every problem."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl

from attrs import field, frozen, has

from repid_core.config.files import NO_SETTINGS, PREFIX, SECTIONS, TOP, meant
from repid_core.config.parts import Configuration, Section
from repid_core.data import Size
from repid_core.errors import RepidError, SettingsError
from repid_core.hookspecs import Backend
from repid_core.plugins import Kind, plugins
from repid_core.settings import UNREADABLE, Given, Loose, keys_of, shown, structure, unknown

_VARIABLE: Final = re.compile(r"\$\$\{|\$\{([^{}]*)\}|\$\{")


def _not_negative(_general: Any, _attribute: Any, value: int) -> None:
    if value < 0:
        raise ValueError(f"args_bucket_threshold={value}: give 0 or more bytes")


@frozen
class _General:
    """What is set outside the sections."""

    args_bucket_threshold: Size = field(default=0, validator=_not_negative)


@frozen
class _Layer:
    """What one source says of a section. A URL's query goes with its URL: whoever overrides that overrides both."""

    own: dict[str, Given]
    query: dict[str, Given]

    def under(self, other: _Layer) -> _Layer:
        kept = {} if "url" in other.own else self.query
        return _Layer({**kept, **self.own, **other.query, **other.own}, {})


class Reader:
    """One run: collects what is set, and every problem."""

    def __init__(self, source: str, environ: Mapping[str, str]) -> None:
        self.source, self.environ = source, dict(environ)
        self.layers: dict[str, _Layer] = {}
        self.top: dict[str, Given] = {}
        self.problems: list[str] = []
        self.paths: list[str] = []  # of the problems
        self.causes: list[BaseException] = []

    def report(self, path: str, origin: str, text: str) -> None:
        self.problems.append(f"{path} ({origin}): {text}" if origin else f"{path}: {text}")
        self.paths.append(path)

    def override(self, table: Mapping[str, Any]) -> None:
        """Take what a file or mapping has, and over it what the environment has."""
        self.take(self.filled(table, "", self.source), self.source)
        keys: dict[str, dict[str, Given]] = {}
        for name in sorted(self.environ):
            if name.startswith(PREFIX) and name not in NO_SETTINGS:
                section, separator, key = name.removeprefix(PREFIX).lower().partition("__")
                if section in SECTIONS and key:
                    keys.setdefault(section, {})[key] = Given(Loose(self.environ[name]), name)
                elif separator:
                    why = "they are set as a whole, as in a, b" if section == "middlewares" else unknown(section, SECTIONS)
                    self.report(f"{section}.{key}", name, f"unknown key, {why}")
                elif section in TOP:
                    self.take({section: Loose(self.environ[name])}, name)
                elif close := meant(section):
                    self.report(section, name, f"unknown key, did you mean {close}?")
        for section, given in keys.items():
            over = self.layer(section, given)
            self.layers[section] = self.layers.get(section, _Layer({}, {})).under(over)

    def take(self, table: Mapping[str, Any], origin: str) -> None:
        for key, value in table.items():
            if key in SECTIONS:
                self.section(key, value, origin)
            elif key in TOP:
                self.top[key] = Given(value, origin)
            else:
                self.report(key, origin, f"unknown key, {unknown(key, TOP)}")

    def section(self, path: str, value: Any, origin: str) -> None:
        """Take a whole section, in the place of what there was of it."""
        if (given := self.table(path, value, origin)) is not None:
            self.layers[path] = self.layer(path, given)

    def table(self, path: str, value: Any, origin: str) -> dict[str, Given] | None:
        """A section as a table: it may also be written as a URL, or as a backend's name."""
        if isinstance(value, str):
            value = {"url" if "://" in value else "backend": value}
        if isinstance(value, Mapping):
            return {str(key): Given(item, origin) for key, item in value.items()}
        if value is not UNREADABLE:
            self.report(path, origin, f"expected a table, or the name of a backend, got {shown(value)}")
        return None

    def layer(self, path: str, given: dict[str, Given]) -> _Layer:
        """Sort out a URL's query, which is settings."""
        url = given.get("url")
        query: dict[str, Given] = {}
        if url is not None and isinstance(url.value, str):
            rest, mark, text = url.value.partition("?")
            if mark and "#" not in url.value and "@" not in text:  # else a password is not quoted, and the backend says so
                origin = url.origin if url.origin.startswith("URL ") else f"{url.origin}, url"
                query = {key: Given(Loose(value), origin) for key, value in parse_qsl(text, keep_blank_values=True)}
                given = {**given, "url": Given(rest, url.origin)}
        for key in query.keys() & given.keys():
            self.report(f"{path}.{key}", given[key].origin, "it is there twice, in the url and beside it: leave one out")
        return _Layer(given, query)

    def filled(self, value: Any, path: str, origin: str) -> Any:
        """The value, with what the environment has for `${NAME}` in its texts, and files for `${file:/PATH}`."""
        if isinstance(value, Mapping):
            return {key: self.filled(item, f"{path}.{key}".lstrip("."), origin) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.filled(item, f"{path}[{index}]", origin) for index, item in enumerate(value)]
        if not isinstance(value, str) or "${" not in value:
            return value
        wrong = [text for match in _VARIABLE.finditer(value) if (text := self.missing(match))]
        for text in wrong:
            self.report(path, origin, text)
        if wrong:
            return UNREADABLE
        return Loose(_VARIABLE.sub(lambda match: self.environ[match[1]] if match[1] else "${", value))

    def missing(self, match: re.Match[str]) -> str | None:
        try:
            if match[0].startswith("${file:/"):
                self.environ[match[1]] = Path(match[1].removeprefix("file:")).read_text("utf-8").rstrip("\r\n")
        except (OSError, ValueError) as error:
            return f"{match[0]} cannot be read: {error}"
        if match[0] == "$${" or match[1] in self.environ:
            return None
        if match[1] and re.fullmatch(r"[A-Za-z_]\w*", match[1]):
            return f"${{{match[1]}}} is not set in the environment: set it, or write $${{ if the signs themselves are meant"
        return "a ${ has no variable's name and }: write ${NAME}, ${file:/PATH}, or $${ for the signs themselves"

    def finish(self, file: Path | None, only: Collection[str] | None) -> Configuration:
        """Choose the backends and structure their settings, or raise all problems."""
        wanted = TOP if only is None else only
        sections = [
            section
            for path, layer in self.layers.items()
            if path in wanted and (section := self.chosen(path, SECTIONS[path], {**layer.query, **layer.own})) is not None
        ]
        if only is None and "message_broker" not in self.layers and not any(path == "message_broker" for path in self.paths):
            self.report("message_broker", self.source, 'missing: for example [message_broker] with url = "memory://"')
        if "middlewares" in wanted:
            sections += self.middlewares()
        general = _General()
        try:
            general = structure(_General, {key: self.top[key] for key in keys_of(_General) if key in self.top and key in wanted})
        except SettingsError as error:
            self.problems += error.problems
            self.paths += [""] * len(error.problems)
        problems = [
            problem
            for path, problem in zip(self.paths, self.problems, strict=True)
            if only is None or not path or re.split(r"[.\[]", path)[0] in only
        ]
        if problems:
            raise SettingsError(problems) from next(iter(self.causes), None)
        return Configuration(self.source, file, {section.path: section for section in sections}, general.args_bucket_threshold)

    def middlewares(self) -> list[Section[Any]]:
        given = self.top.get("middlewares")
        if given is None or given.value is UNREADABLE:
            return []
        items: Any = given.value
        if isinstance(items, Loose):
            items = [name.strip() for name in items.split(",") if name.strip()]
        if not isinstance(items, Sequence) or isinstance(items, str):
            self.report("middlewares", given.origin, f"expected a list of names and tables, got {shown(items)}")
            return []
        found = []
        for index, item in enumerate(items):
            path = f"middlewares[{index}]"
            if (table := self.table(path, item, given.origin)) is not None:
                found.append(self.chosen(path, Kind.MIDDLEWARE, table))
        return [section for section in found if section is not None]

    def chosen(self, path: str, kind: Kind[Any], given: dict[str, Given]) -> Section[Any] | None:
        if (backend := self.backend(path, kind, given)) is None:
            return None
        what = f"{kind} {backend.name!r}"
        try:
            cls = plugins().settings_class(kind, backend)
        except RepidError as error:
            self.failed(path, self.source, error)
            return None
        origin = next((item.origin for item in given.values()), self.source)
        own = {key: item for key, item in given.items() if key != "backend"}
        if cls is not None and not has(cls):
            self.report(path, origin, f"{what} cannot be used: its settings, {cls.__name__}, are no attrs class")
            return None
        if (url := own.get("url")) is not None and "url" not in keys_of(cls):
            del own["url"]  # it has told its backend
            if isinstance(url.value, str) and not url.value.endswith("://"):
                self.report(f"{path}.url", url.origin, f"{what} takes nothing after the :// of {shown(url.value)}: leave it out")
        if cls is None:
            for key, item in own.items():
                self.report(f"{path}.{key}", item.origin, f"unknown key: {what} has no settings")
            return Section(path, kind, backend, None, own)
        try:
            return Section(path, kind, backend, structure(cls, own, path=path, what=what, origin=origin), own)
        except SettingsError as error:
            self.problems += error.problems
            self.paths += [path] * len(error.problems)
            return None

    def backend(self, path: str, kind: Kind[Any], given: dict[str, Given]) -> Backend[Any] | None:
        """The backend that is named, or else that its URL's scheme tells."""
        named, url = given.get("backend"), given.get("url")
        if named is not None and url is not None and url.value is UNREADABLE:
            url = None
        if (which := named or url) is not None and which.value is UNREADABLE:
            return None
        for key, item in (("backend", named), ("url", url)):
            if item is not None and not isinstance(item.value, str):
                self.report(f"{path}.{key}", item.origin, f"expected a text, got {shown(item.value, key)}")
                return None
        scheme = url.value.partition("://")[0].lower() if url is not None and "://" in url.value else None
        try:
            if named is not None:
                found = plugins().backend(kind, str(named.value))
                return found if scheme is None or url is None else self.agreed(path, found, named, url, scheme)
            if scheme is not None and url is not None:
                return plugins().for_scheme(kind, scheme)
        except RepidError as error:
            key, origin = ("backend", named.origin) if named is not None else ("url", url.origin if url is not None else "")
            self.failed(f"{path}.{key}", origin, error)
            return None
        self.unchosen(path, kind, given)
        return None

    def unchosen(self, path: str, kind: Kind[Any], given: dict[str, Given]) -> None:
        """Nothing tells the backend."""
        names = ", ".join(sorted(backend.name for backend in plugins().backends(kind))) or "none"
        if (url := given.get("url")) is not None:
            path, origin = f"{path}.url", url.origin
            said = 'it has no ://, so it tells no backend: write for example memory://, or give backend = "…"'
        else:
            origin = next((item.origin for item in given.values()), self.source)
            has_urls = kind.base.__name__ in ("MessageBroker", "BucketBroker")
            said = f'no backend is chosen: give backend = "…"{", or a url" if has_urls else ""}'
        self.report(path, origin, f"{said}; available: {names}")

    def agreed(self, path: str, found: Backend[Any], named: Given, url: Given, scheme: str) -> Backend[Any] | None:
        if not found.url_schemes or scheme in found.url_schemes:
            return found
        takes = ", ".join(f"{known}://" for known in found.url_schemes)
        self.report(
            f"{path}.url",
            url.origin,
            f"{shown(url.value)} is not for backend {found.name!r} ({named.origin}), which takes {takes}: correct "
            "one of the two, or leave out the backend",
        )
        return None

    def failed(self, path: str, origin: str, error: RepidError) -> None:
        self.report(path, origin, str(error))
        if error.__cause__ is not None:
            self.causes.append(error.__cause__)
