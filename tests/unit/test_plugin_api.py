"""What plugins are written against: every public name and signature is the one that `plugin_api.txt` has.

Whoever means a change writes the file anew, and looks at the difference before it is committed::

    python -m tests.unit.test_plugin_api

Within one value of `Backend.api` a plugin need not notice: methods and parameters with a default may come, nothing may go. What a
plugin's author should know goes into the changelog, under "For plugin authors".
"""

from __future__ import annotations

import difflib
import enum
import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import attrs
import pytest

from repid_core.testing.conformance.suite import ConformanceSuite

GOLDEN = Path(__file__).with_name("plugin_api.txt")
#: What is neither class nor function.
OTHERS = {"repid_core.data": {"OnDuplicate", "Size"}, "repid_core.hookspecs": {"ENTRY_POINT_GROUP", "hookimpl", "hookspec"}}
FIXTURES = {"converter_class", "make_broker", "make_middleware", "serializer"}
ATTRIBUTES = {"address", "deviations", "in_process", "lenient", "manual_clock", "patience", "secrets", "without"}
COMMAND = "python -m tests.unit.test_plugin_api"

#: The modules that are public to plugins, and what of each; None for all classes and functions without an underscore.
PUBLIC: dict[str, tuple[str, ...] | None] = {
    "repid_core.abc": None,
    "repid_core.clock": ("Clock", "SystemClock", "SYSTEM_CLOCK", "Timer"),
    "repid_core.codec": (
        "death_fields",
        "death_from_fields",
        "decode_envelope",
        "decode_header",
        "encode_envelope",
        "encode_header",
        "envelope_from_fields",
        "from_ms",
        "message_fields",
        "to_ms",
    ),
    "repid_core.data": None,
    "repid_core.errors": None,
    "repid_core.hookspecs": None,
    "repid_core.json_serializer": ("JsonSerializer",),
    "repid_core.cattrs_converter": ("CattrsConverter",),
    "repid_core.testing.clock": None,
    "repid_core.testing.proxy": None,
    "repid_core.testing.conformance": (
        "BucketBrokerConformance",
        "ConformanceSuite",
        "ConverterConformance",
        "MessageBrokerConformance",
        "MiddlewareConformance",
        "Promise",
        "PromiseBroken",
        "SerializerConformance",
        "promise",
    ),
}


def written() -> str:
    """The whole of it, a line for each thing, so that a difference can be read."""
    return "\n".join(line for module, names in PUBLIC.items() for line in (*of_module(module, names), ""))


def of_module(name: str, names: tuple[str, ...] | None) -> Iterator[str]:
    module = import_module(name)
    own = {each for each, value in vars(module).items() if not each.startswith("_") and belongs(value, name)}
    yield f"[{name}]"
    for each in sorted(names or own | OTHERS.get(name, set())):
        yield from of_object(each, getattr(module, each))


def belongs(value: object, module: str) -> bool:
    """Whether a module defines it; classes and functions say so."""
    return (inspect.isclass(value) or inspect.isfunction(value)) and value.__module__ == module


def of_object(name: str, value: Any) -> Iterator[str]:
    if inspect.isclass(value):
        yield from of_class(name, value)
    elif inspect.isfunction(value):
        yield f"{kind(value)} {name}{signature(value)}"
    else:
        yield f"{name}: {shown(value)}"


def of_class(name: str, cls: type) -> Iterator[str]:
    bases = ", ".join(base.__name__ for base in cls.__bases__ if base is not object)
    yield f"class {name}({bases})" if bases else f"class {name}"
    if issubclass(cls, enum.Enum):
        yield from (f"    {member.name} = {member.value!r}" for member in cls)
        return
    if attrs.has(cls) or ("__init__" in vars(cls) and Protocol not in cls.__bases__):
        yield f"    def __init__{signature(cls.__init__)}"  # type: ignore[misc]
    yield from sorted(members(cls), key=lambda line: re.sub(r"@\w+ |async |def ", "", line))


def members(cls: type) -> Iterator[str]:
    fields = {field.name for field in attrs.fields(cls)} if attrs.has(cls) else set()
    for name, hint in inspect.get_annotations(cls).items():
        if not name.startswith("_") and name not in fields and name not in vars(cls):
            yield f"    {name}: {hint}"
    # the tests of a suite are the contract, which grows; a class's own helpers for them are as good as private
    inherited = cls if issubclass(cls, ConformanceSuite) else None
    for name in sorted(vars(cls) if inherited is None else dir(cls)):
        value = inspect.getattr_static(cls, name)
        if not name.startswith(("_", "test_")) and name not in fields and (inherited is None or for_authors(name, value)):
            yield f"    {of_member(name, value)}"


def for_authors(name: str, value: object) -> bool:
    """What a suite's docstring offers to be overridden: its fixture, hooks and attributes."""
    return hasattr(value, "__hook__") or name in {*FIXTURES, *ATTRIBUTES}


def of_member(name: str, value: Any) -> str:
    if isinstance(value, property):
        return f"{abstract(value.fget)}property {name} -> {inspect.signature(value.fget).return_annotation}"  # type: ignore[arg-type]
    if isinstance(value, (classmethod, staticmethod)):
        return f"{type(value).__name__} {name}{signature(value.__func__)}"
    if name in FIXTURES:
        return f"fixture {name}"
    if inspect.isfunction(value):
        return f"{abstract(value)}{kind(value)} {name}{signature(value)}"
    return f"{name} = {shown(value)}"


def abstract(value: object) -> str:
    return "@abstractmethod " if getattr(value, "__isabstractmethod__", False) else ""


def kind(value: object) -> str:
    return "async def" if inspect.iscoroutinefunction(value) else "def"


def signature(value: Any) -> str:
    """As it is written, with defaults that are the same in every process."""
    found = inspect.signature(value)
    parameters = [
        p.replace(
            default=p.default if p.default is p.empty else Shown(shown(p.default)),
            annotation=p.annotation if p.annotation is p.empty else Shown(str(p.annotation)),
        )
        for p in found.parameters.values()
    ]
    returns = found.return_annotation
    return str(found.replace(parameters=parameters, return_annotation=returns if returns is found.empty else Shown(str(returns))))


class Shown:
    """What `repr` shows as this text."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def shown(value: object) -> str:
    """Its repr; or its type, where that says where in memory it is."""
    if isinstance(value, enum.Enum):
        return f"{type(value).__name__}.{value.name}"
    text = repr(value)
    return f"<{type(value).__name__}>" if " object at 0x" in text or "Marker" in text else text


def test_what_plugins_are_written_against_has_not_changed() -> None:
    golden, now = GOLDEN.read_text("utf-8"), written()
    if golden == now:
        return
    lines = difflib.unified_diff(golden.splitlines(), now.splitlines(), "as it was released", "as it is", lineterm="", n=0)
    changes = "\n".join(line for line in lines if not line.startswith("@@"))
    pytest.fail(
        f"what plugins are written against is not what {GOLDEN.name} says:\n\n{changes}\n\n"
        f"If that is meant, write the file anew with `{COMMAND}`, and tell plugin authors in the changelog; "
        "a line that goes, or changes so that plugins break, needs a new value of Backend.api.",
        pytrace=False,
    )


def test_the_golden_file_has_what_plugins_use() -> None:
    golden = GOLDEN.read_text("utf-8")
    for line in (
        "    @abstractmethod async def enqueue(self, envelope: Envelope) -> Enqueued",
        "    UNIQUE = 'unique'",
        "class DuplicateJobError(EnqueueError)",
        "def repid_register_message_brokers() -> Iterable[Backend[MessageBroker]]",
        "    fixture make_broker",
        "    async def kill_consumer(self, broker: MessageBroker, consumer: Consumer) -> None",
    ):
        assert f"{line}\n" in golden
    assert "0x" not in golden


if __name__ == "__main__":
    GOLDEN.write_text(written(), "utf-8")
