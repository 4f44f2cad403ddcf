"""Suites for the backends of an installed plugin, made of its records and settings: what `repid plugin test` runs."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, ClassVar, Final
from uuid import uuid4

import attrs
import pytest
from attrs import frozen

from repid_core.abc import BucketBroker, Converter, MessageBroker, Serializer
from repid_core.config import Section
from repid_core.errors import InvalidActorError, SerializationError
from repid_core.plugins import Kind
from repid_core.testing.clock import ManualClock
from repid_core.testing.conformance import converter, serializer
from repid_core.testing.conformance.bucket_broker import BucketBrokerConformance
from repid_core.testing.conformance.converter import ConverterConformance
from repid_core.testing.conformance.message_broker import MessageBrokerConformance
from repid_core.testing.conformance.middleware import MiddlewareConformance
from repid_core.testing.conformance.serializer import SerializerConformance
from repid_core.testing.conformance.suite import ConformanceSuite

_ALONE: Final = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""}  # no plugins but those that are needed
_OPTIONS: Final = ("-q", "--capture=no", "-p", "no:cacheprovider", "-p", "repid_conformance", "-p", "asyncio")


@frozen
class Found:
    """What a run of the suites found.

    Attributes:
        complete: Whether pytest ran to its end.
        suites: For each section, by its path: what is tested, and every promise with its outcome; as in the JSON report.
        output: What pytest printed.
    """

    complete: bool
    suites: Mapping[str, Mapping[str, Any]]
    output: str


class _Brokers:
    """Makes clients of a namespace that is fresh for each test, as far as the settings can say so."""

    section: ClassVar[Section[Any]]
    moved_clock: ClassVar[bool] = False

    def manual_clock(self) -> ManualClock | None:
        return ManualClock() if self.moved_clock else None

    def clients(self) -> Callable[[], Any]:
        settings: Any = self.section.settings
        fields = {field.name for field in attrs.fields(type(settings))} if attrs.has(type(settings)) else set()
        if "prefix" in fields:
            settings = attrs.evolve(settings, prefix=f"{settings.prefix}test-{uuid4().hex[:12]}")
            return attrs.evolve(self.section, settings=settings).build
        if "url" in fields:  # shared with whatever else is there; the tests remove what they leave
            return self.section.build
        only = self.section.build()  # nothing says where it is: in this very object
        return lambda: only


class _MessageBroker(_Brokers, MessageBrokerConformance):
    @pytest.fixture
    def make_broker(self) -> Callable[[], MessageBroker]:
        return self.clients()


class _BucketBroker(_Brokers, BucketBrokerConformance):
    @pytest.fixture
    def make_broker(self) -> Callable[[], BucketBroker]:
        return self.clients()


class _Serializer(SerializerConformance):
    section: ClassVar[Section[Any]]

    @pytest.fixture
    def serializer(self) -> Serializer:
        made: Serializer = self.section.build()
        return made

    def describe(self) -> dict[str, Any]:
        return {"refuses": list(self.without.values())}


class _Converter(ConverterConformance):
    section: ClassVar[Section[Any]]

    @pytest.fixture
    def converter_class(self) -> type[Converter]:
        made: type[Converter] = self.section.build()
        return made

    def describe(self) -> dict[str, Any]:
        return {"refuses": list(self.without.values())}


class _Middleware(MiddlewareConformance):
    section: ClassVar[Section[Any]]

    @pytest.fixture
    def make_middleware(self) -> Callable[[], Any]:
        return self.section.build


_SUITES: Final[Mapping[Kind[Any], type[ConformanceSuite]]] = {
    Kind.MESSAGE_BROKER: _MessageBroker,
    Kind.BUCKET_BROKER: _BucketBroker,
    Kind.SERIALIZER: _Serializer,
    Kind.CONVERTER: _Converter,
    Kind.MIDDLEWARE: _Middleware,
}


def run(
    sections: Sequence[Section[Any]],
    *,
    in_process: bool = False,
    deviations: Mapping[str, str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Found:
    """Run the suites in this process.

    Args:
        sections: The backends, with their settings; paths that differ.
        in_process: The brokers keep all in the memory of this process and go by `Broker.clock`, which the tests then move.
        deviations: Reasons by the name of the test, see `ConformanceSuite`; each goes to the suites that have the test.
        progress: Called with how many tests have ended, and of how many.
    """
    classes = {f"Test{number}": _suite(section, in_process, deviations or {}) for number, section in enumerate(sections)}
    watcher, output = _Watcher(progress), io.StringIO()
    with _collected(classes), _environment(_ALONE), redirect_stdout(output):
        arguments = ["-c", str(Path(__file__).with_suffix(".ini")), *_OPTIONS, __file__]
        status = pytest.main(arguments, plugins=[watcher])
    suites = {
        section.path: watcher.suites[name] for name, section in zip(classes, sections, strict=True) if name in watcher.suites
    }
    complete = status in {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED} and len(suites) == len(sections)
    return Found(complete, suites, output.getvalue())


def _suite(section: Section[Any], in_process: bool, deviations: Mapping[str, str]) -> type[ConformanceSuite]:
    base = _SUITES[section.kind]
    own: dict[str, Any] = {
        "section": section,
        "deviations": {test: reason for test, reason in deviations.items() if test in base.promises()},
    }
    if in_process and issubclass(base, _Brokers):
        own |= {"moved_clock": True, "in_process": "the backend keeps all in the memory of the process"}
    if issubclass(base, _Serializer):
        own["without"] = _refused_by_serializer(section.build())
    if issubclass(base, _Converter):
        own["without"] = _refused_by_converter(section.build())
    return type(base.__name__, (base,), own)


def _refused_by_serializer(made: Serializer) -> dict[Any, str]:
    refused: dict[Any, str] = {}
    for hint, value in serializer.NATIVE.items():
        try:
            made.dumps(value)
        except SerializationError as error:
            refused[hint] = str(error)
        except Exception:  # noqa: BLE001, S112 — the suite says so
            continue
    return refused


def _refused_by_converter(made: type[Converter]) -> dict[Any, str]:
    refused: dict[Any, str] = {}
    for hint, _ in converter.ROUND_TRIPS:

        def actor(value: Any) -> None: ...

        actor.__annotations__["value"] = hint
        try:
            made(actor)
        except InvalidActorError as error:
            refused[hint] = str(error)
        except Exception:  # noqa: BLE001, S112 — the suite says so
            continue
    return refused


class _Watcher:
    """Counts tests, and keeps what the report's plugin has collected."""

    def __init__(self, progress: Callable[[int, int], None] | None) -> None:
        self._progress, self._done, self._of = progress, 0, 0
        self.suites: dict[str, dict[str, Any]] = {}

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._of = len(session.items)

    def pytest_runtest_logfinish(self) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._of)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        found = session.config.pluginmanager.get_plugin("repid-conformance-report")
        if found is not None:
            self.suites = {name.rpartition("::")[2]: suite for name, suite in found.reported().items()}


@contextmanager
def _collected(classes: Mapping[str, type[ConformanceSuite]]) -> Iterator[None]:
    """Put the classes where pytest finds them: into this module."""
    module = sys.modules[__name__]
    for name, cls in classes.items():
        cls.__name__ = cls.__qualname__ = name
        setattr(module, name, cls)
    try:
        yield
    finally:
        for name in classes:
            delattr(module, name)


@contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
