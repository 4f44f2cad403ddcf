"""File and environment become the parts of a connection; `docs/reference/configuration.md` has the rules.

`load` reads, merges and checks everything, and connects and builds nothing. It raises one error that lists all problems.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, Generic, TypeVar
from urllib.parse import parse_qsl

from attrs import field, frozen, has

from repid_core.data import Size
from repid_core.errors import ConfigError, RepidError, SettingsError
from repid_core.hookspecs import Backend
from repid_core.plugins import Kind, plugins
from repid_core.settings import UNREADABLE, Given, Loose, keys_of, masked, shown, structure, unknown

T = TypeVar("T")

#: The sections that choose one backend each.
SECTIONS: Final[Mapping[str, Kind[Any]]] = {
    "message_broker": Kind.MESSAGE_BROKER,
    "args_bucket_broker": Kind.BUCKET_BROKER,
    "results_bucket_broker": Kind.BUCKET_BROKER,
    "serializer": Kind.SERIALIZER,
    "converter": Kind.CONVERTER,
}
_PREFIX: Final = "REPID_"
_FILE: Final = "REPID_CONFIG"
_NO_SETTINGS: Final = {_FILE, "REPID_DISABLE_PLUGINS"}
_NAMES: Final = ("repid.toml", "pyproject.toml")
_VARIABLE: Final = re.compile(r"\$\$\{|\$\{([^{}]*)\}|\$\{")


def _not_negative(_general: Any, _attribute: Any, value: int) -> None:
    if value < 0:
        raise ValueError(f"args_bucket_threshold={value}: give 0 or more bytes")


@frozen
class _General:
    """What is set outside the sections."""

    args_bucket_threshold: Size = field(default=0, validator=_not_negative)


_TOP: Final = (*SECTIONS, "middlewares", *keys_of(_General))


@frozen
class Section(Generic[T]):
    """One backend, chosen, with its settings.

    Attributes:
        path: Where it is configured: "message_broker", "middlewares[0]".
        kind: What it is.
        backend: The plugin's record of it.
        settings: An instance of its settings class; None if it takes none. Strangers' classes may show secrets in their repr.
        given: What was set, by key, and where.
    """

    path: str
    kind: Kind[T]
    backend: Backend[T]
    settings: object | None = field(repr=False)
    given: Mapping[str, Given] = field(factory=dict)

    def build(self) -> T:
        """Make the backend; it is not connected.

        Raises:
            SettingsError: It cannot be made; the text says why, and names the path.
        """
        try:
            return plugins().build(self.kind, self.backend, self.settings)
        except Exception as error:
            raise SettingsError([f"{self.path}: {_words(error)}"]) from error

    def describe(self) -> dict[str, str]:
        """What was set, in words, without secrets."""
        return {key: shown(item.value, key) for key, item in self.given.items()}

    def __repr__(self) -> str:
        settings = ", ".join(f"{key}={text}" for key, text in self.describe().items())
        return f"<{self.path}: {self.kind} {self.backend.name!r}({settings})>"


@frozen
class Configuration:
    """What was configured: all valid, as far as it can be told without a server. The `repr` has no secrets.

    Attributes:
        source: Where it comes from, in words: a file's path, "the mapping", "URLs", "the environment".
        file: The file; None if there is none.
        sections: What was chosen, by path: "message_broker", "serializer", "middlewares[0]", … Others are not there.
        args_bucket_threshold: Serialized arguments of at least as many bytes go to the args bucket broker.
    """

    source: str
    file: Path | None
    sections: Mapping[str, Section[Any]]
    args_bucket_threshold: int = 0

    def parts(self) -> dict[str, Any]:
        """The arguments for `Connection`, made anew with each call. Buckets of equal settings share one broker.

        Raises:
            SettingsError: Backends cannot be made; lists all that cannot.
        """
        problems: list[str] = []
        causes: list[BaseException | None] = []
        made: list[tuple[Section[Any], Any]] = []
        for section in self.sections.values():
            try:
                made.append((section, _shared(section, made) or section.build()))
            except SettingsError as error:
                problems += error.problems
                causes.append(error.__cause__)
        if problems:
            raise SettingsError(problems) from causes[0]
        return {
            **{section.path: it for section, it in made if section.kind is not Kind.MIDDLEWARE},
            "middlewares": [it for section, it in made if section.kind is Kind.MIDDLEWARE],
            "args_bucket_threshold": self.args_bucket_threshold,
        }


def load(
    source: Mapping[str, Any] | str | os.PathLike[str] | None = None,
    environ: Mapping[str, str] | None = None,
    *,
    only: Collection[str] | None = None,
) -> Configuration:
    """Find, read, merge and check the configuration.

    Args:
        source: A mapping, or a file's path; None for the file that `REPID_CONFIG` names, or else the nearest that is found from
            the working directory upwards.
        environ: The environment, which overrides, and fills in `${NAME}`; None for that of the process.
        only: The keys to look at, for example {"results_bucket_broker"}; None for all, of which there must be a message broker.

    Raises:
        ConfigError: There is no configuration, or the file cannot be read.
        SettingsError: It is not valid; its `problems` list everything that is wrong.
    """
    environ = os.environ if environ is None else environ
    file: Path | None = None
    table: Mapping[str, Any]
    if isinstance(source, Mapping):
        words, table = "the mapping", source
    elif source is not None:
        if "://" in str(source):
            raise ConfigError(f"{masked(str(source))!r} is a URL, not a file: use Connection.from_urls")
        file = Path(source)
        words, table = str(file), _read(file)
    else:
        file, words, table = _found(environ)
    reader = _Reader(words, environ)
    reader.override(table)
    return reader.finish(file, only)


def from_urls(args_bucket_threshold: int | str = 0, **urls: str | None) -> Configuration:
    """The configuration that URLs stand for, by section. The environment has no part in it.

    Raises:
        SettingsError: They are not valid; its `problems` list everything that is wrong.
    """
    reader = _Reader("URLs", {})
    for path, url in urls.items():
        if url is not None:
            origin = f"URL {masked(str(url)).partition('?')[0]}"
            if "://" in str(url):
                reader.section(path, {"url": url}, origin)
            else:
                reader.report(path, origin, "it has no ://, so it is no URL: write for example memory://")
    reader.top["args_bucket_threshold"] = Given(args_bucket_threshold, "")
    return reader.finish(None, None)


def _found(environ: Mapping[str, str]) -> tuple[Path | None, str, Mapping[str, Any]]:
    """The file that the environment names, or the nearest; or nothing, if the environment has settings."""
    if named := environ.get(_FILE):
        words = f"{named}, named by {_FILE},"
        return Path(named), words.rstrip(","), _read(Path(named), words)
    looked = []
    for folder in _upwards(Path.cwd()):
        looked.append(str(folder))
        for name in _NAMES:
            if _there(file := folder / name) and (name != _NAMES[1] or _tool(_parsed(file)) is not None):
                return file, str(file), _read(file)
    if any(map(_is_setting, environ)):
        return None, "the environment", {}
    raise ConfigError(
        f"no configuration was found: neither repid.toml nor [tool.repid] in pyproject.toml is in {' or '.join(looked)}; "
        f"write one, name a file in {_FILE}, or set REPID_MESSAGE_BROKER__URL"
    )


def _upwards(folder: Path) -> Iterator[Path]:
    """From a folder to the root of its project, or to the home directory, or else to the root of the file system."""
    home = None
    with suppress(RuntimeError):  # a user without one
        home = Path.home()
    for place in (folder, *folder.parents):
        yield place
        if place == home or _there(place / ".git"):
            return


def _there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # in a folder that is not for us
        return False


def _read(file: Path, words: str = "") -> Mapping[str, Any]:
    parsed = _parsed(file, words)
    if file.name != _NAMES[1]:
        return parsed
    if (table := _tool(parsed)) is None:
        raise ConfigError(f"{words or file} has no [tool.repid]: add it, or name another file")
    return table


def _tool(parsed: Mapping[str, Any]) -> Mapping[str, Any] | None:
    tools = parsed.get("tool")
    table = tools.get("repid") if isinstance(tools, Mapping) else None
    return table if isinstance(table, Mapping) else None


def _parsed(file: Path, words: str = "") -> Mapping[str, Any]:
    import tomllib  # noqa: PLC0415 — it costs what most processes can spare

    try:
        return tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{words or file} cannot be read: {error.strerror}") from error
    except ValueError as error:  # also of decoding
        raise ConfigError(f"{words or file} is no valid TOML: {error}") from error


@frozen
class _Layer:
    """What one source says of a section. A URL's query goes with its URL: whoever overrides that overrides both."""

    own: dict[str, Given]
    query: dict[str, Given]

    def under(self, other: _Layer) -> _Layer:
        kept = {} if "url" in other.own else self.query
        return _Layer({**kept, **self.own, **other.query, **other.own}, {})


class _Reader:
    """One run: collects what is set, and every problem."""

    def __init__(self, source: str, environ: Mapping[str, str]) -> None:
        self.source, self.environ = source, environ
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
            if name.startswith(_PREFIX) and name not in _NO_SETTINGS:
                section, separator, key = name.removeprefix(_PREFIX).lower().partition("__")
                if section in SECTIONS and key:
                    keys.setdefault(section, {})[key] = Given(Loose(self.environ[name]), name)
                elif separator:
                    why = "they are set as a whole, as in a, b" if section == "middlewares" else unknown(section, SECTIONS)
                    self.report(f"{section}.{key}", name, f"unknown key, {why}")
                elif section in _TOP:
                    self.take({section: Loose(self.environ[name])}, name)
                elif meant := _meant(section):
                    self.report(section, name, f"unknown key, did you mean {meant}?")
        for section, given in keys.items():
            over = self.layer(section, given)
            self.layers[section] = self.layers.get(section, _Layer({}, {})).under(over)

    def take(self, table: Mapping[str, Any], origin: str) -> None:
        for key, value in table.items():
            if key in SECTIONS:
                self.section(key, value, origin)
            elif key in _TOP:
                self.top[key] = Given(value, origin)
            else:
                self.report(key, origin, f"unknown key, {unknown(key, _TOP)}")

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
                pairs = [pair for pair in parse_qsl(text, keep_blank_values=True) if pair[0] not in ("url", "backend")]
                query = {key: Given(Loose(value), origin) for key, value in pairs}
                given = {**given, "url": Given(rest, url.origin)}
        for key in query.keys() & given.keys():
            self.report(f"{path}.{key}", given[key].origin, "it is there twice, in the url and beside it: leave one out")
        return _Layer(given, query)

    def filled(self, value: Any, path: str, origin: str) -> Any:
        """The value, with what the environment has for `${NAME}` in its texts."""
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
        if match[0] == "$${" or match[1] in self.environ:
            return None
        if match[1] and re.fullmatch(r"[A-Za-z_]\w*", match[1]):
            return f"${{{match[1]}}} is not set in the environment: set it, or write $${{ if the signs themselves are meant"
        return "a ${ has no variable's name and }: write ${NAME}, or $${ for the signs themselves"

    def finish(self, file: Path | None, only: Collection[str] | None) -> Configuration:
        """Choose the backends and structure their settings, or raise all problems."""
        wanted = _TOP if only is None else only
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
        if "url" in own and (
            cls is None or (has(cls) and "url" not in keys_of(cls))
        ):  # it has told its backend, and there is no more in it
            url = own.pop("url")
            if not str(url.value).endswith("://"):
                self.report(f"{path}.url", url.origin, f"{what} takes nothing after the :// of {shown(url.value)}: leave it out")
        if cls is not None and not has(cls):
            self.report(path, origin, f"{what} cannot be used: its settings, {cls.__name__}, are no attrs class")
            return None
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
        names = ", ".join(sorted(backend.name for backend in plugins().backends(kind))) or "none"
        origin = next((item.origin for item in given.values()), self.source)
        way = 'backend = "…"' if kind.base.__name__ not in ("MessageBroker", "BucketBroker") else 'backend = "…", or a url'
        self.report(path, origin, f"no backend is chosen: give {way}; available: {names}")
        return None

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


def _is_setting(variable: str) -> bool:
    name = variable.removeprefix(_PREFIX).lower()
    return variable.startswith(_PREFIX) and ("__" in name or name in _TOP or _meant(name) is not None)


def _meant(name: str) -> str | None:
    """The variable that somebody who wrote this one, in lower case, may have had in mind; many are not for us."""
    for section in SECTIONS:
        if name.startswith(f"{section}_"):
            return f"{_PREFIX}{section.upper()}__{name.removeprefix(f'{section}_').upper()}"
    close = get_close_matches(name, _TOP, 1, 0.85)
    return f"{_PREFIX}{close[0].upper()}" if close else None


def _shared(section: Section[Any], made: list[tuple[Section[Any], Any]]) -> Any:
    if section.kind is not Kind.BUCKET_BROKER:
        return None
    same = [
        it
        for other, it in made
        if (other.kind, other.backend, other.settings) == (section.kind, section.backend, section.settings)
    ]
    return next(iter(same), None)


def _words(error: Exception) -> str:
    if isinstance(error, SettingsError):
        return "; ".join(error.problems)
    text = " ".join(str(error).split())
    return text if isinstance(error, RepidError | ValueError) else f"{type(error).__name__}: {text}"
