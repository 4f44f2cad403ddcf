"""What was configured: backends with their settings, to be looked at or built."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from attrs import field, frozen

from repid_core.errors import RepidError, SettingsError
from repid_core.hookspecs import Backend
from repid_core.plugins import Kind, plugins
from repid_core.settings import Given, shown

T = TypeVar("T")


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
                same = _shared(section, made)
                made.append((section, section.build() if same is None else same))
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


def _shared(section: Section[Any], made: list[tuple[Section[Any], Any]]) -> Any:
    if section.kind is not Kind.BUCKET_BROKER:
        return None
    wanted = (section.kind, section.backend, section.settings)
    return next((it for other, it in made if (other.kind, other.backend, other.settings) == wanted), None)


def _words(error: Exception) -> str:
    if isinstance(error, SettingsError):
        return "; ".join(error.problems)
    text = " ".join(str(error).split())
    return text if isinstance(error, RepidError | ValueError) else f"{type(error).__name__}: {text}"
