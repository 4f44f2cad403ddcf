"""The reference of settings follows from the settings classes of core and of the plugins.

`python tests/integration/test_docs_settings.py` writes the page, where all plugins are installed.
"""

from __future__ import annotations

import inspect
import re
import tomllib
from collections.abc import Iterator
from datetime import timedelta
from importlib import import_module
from itertools import groupby
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import attrs
import pytest

from repid_core import Backend, Size
from repid_core.config import from_urls, load
from repid_core.plugins import Kind, plugins
from repid_core.settings import duration, size

pytestmark = pytest.mark.examples

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "settings.md"
BEGIN = "<!-- What follows is written by tests/integration/test_docs_settings.py. -->\n"
HOUSE = sorted(path.name for path in ROOT.glob("plugins/*") if (path / "pyproject.toml").exists())

SECTIONS: dict[Kind[Any], tuple[str, ...]] = {
    Kind.MESSAGE_BROKER: ("message_broker",),
    Kind.BUCKET_BROKER: ("args_bucket_broker", "results_bucket_broker"),
    Kind.MIDDLEWARE: (),
    Kind.SERIALIZER: ("serializer",),
    Kind.CONVERTER: ("converter",),
}
UNITS = {("s3", "ttl_days"): "days", ("s3", "prefix_days"): "days"} | {
    ("prometheus", name): "seconds" for name in ("wait_buckets", "run_buckets")
}


@attrs.frozen
class Setting:
    """A field of a settings class. `default` is what the docstring says after "Default:"; None if it must be given."""

    name: str
    hint: Any
    meaning: str
    default: str | None
    value: Any


def backends(kind: Kind[Any]) -> list[tuple[str, Backend[Any]]]:
    """The house's own, with the distribution that brings them."""
    found = [
        (info.distribution, backend)
        for info in plugins().report()
        if info.distribution in {"repid-core", *HOUSE}
        for backend in info.backends.get(kind, ())
    ]
    return sorted(found, key=lambda pair: (pair[0] != "repid-core", pair[1].name))


CLASSES = [
    (kind, backend.name, cls)
    for kind in SECTIONS
    for _, backend in backends(kind)
    if (cls := plugins().settings_class(kind, backend)) is not None
]


def documented(cls: type) -> dict[str, str]:
    """What the docstrings of a class and of its bases say of its fields."""
    entries: dict[str, str] = {}
    for base in cls.__mro__:
        _, _, text = (inspect.cleandoc(base.__dict__.get("__doc__") or "")).partition("Attributes:\n")
        for name, said in re.findall(r"^    (\w+): (.*(?:\n        .*)*)", text.split("\n\n", 1)[0], re.MULTILINE):
            entries.setdefault(name, " ".join(said.split()))
    return entries


def settings(cls: type) -> Iterator[Setting]:
    said, hints = documented(cls), get_type_hints(cls, include_extras=True)
    for field in attrs.fields(cls):
        meaning, found, default = said[field.name].rpartition(" Default: ")
        if not found:
            meaning = default
        value = field.default
        if isinstance(value, attrs.Factory):  # type: ignore[arg-type]
            value = None
        yield Setting(field.name, hints[field.name], meaning, default.removesuffix(".") if found else None, value)


def rendered() -> str:
    """The part of the page that follows from the classes."""
    parts = [BEGIN]
    for kind, group in groupby(CLASSES, key=lambda each: each[0]):
        sections = SECTIONS[kind]
        parts.append(f"\n## {str(kind).capitalize()}s\n\n")
        if sections:
            tables = " and ".join(f"`[{section}]`" for section in sections)
            variables = " and ".join(f"`REPID_{section.upper()}__`" for section in sections)
            parts.append(f"In a file: {tables}. In the environment: {variables}, and the name in upper case.\n")
        else:
            parts.append(
                'In a file: a table in `middlewares`, such as `{ backend = "prometheus", port = 9000 }`. The environment\n'
            )
            parts.append("can name middlewares, and not set what is theirs.\n")
        for _, name, cls in group:
            parts += section(kind, name, cls)
    parts.append("\n## Without settings\n\nSerializers and converters are chosen by name, and that is all.\n\n")
    parts.append("| name | kind | distribution | what it is |\n|---|---|---|---|\n")
    parts += [
        f"| `{backend.name}` | {kind} | `{distribution}` | {backend.summary.rstrip('.')} |\n"
        for kind in SECTIONS
        for distribution, backend in backends(kind)
        if plugins().settings_class(kind, backend) is None
    ]
    return "".join(parts)


def section(kind: Kind[Any], name: str, cls: type) -> Iterator[str]:
    [(distribution, backend)] = [found for found in backends(kind) if found[1].name == name]
    where = "../../README.md" if distribution == "repid-core" else f"../../plugins/{distribution}/README.md"
    schemes = ", ".join(f"`{scheme}://`" for scheme in backend.url_schemes)
    yield f"\n### {name}: {kind}\n\n{backend.summary}\n\n"
    package = "repid_core.memory" if name == "memory" else cls.__module__.partition(".")[0]
    assert getattr(import_module(package), cls.__name__) is cls
    yield f"From [{distribution}]({where}); the class is `{package}.{cls.__name__}`.{f' URLs: {schemes}.' if schemes else ''}\n\n"
    yield "| setting | type | default | what it is |\n|---|---|---|---|\n"
    for setting in settings(cls):
        unit = UNITS.get((name, setting.name))
        kind_of = type_of(setting.hint) + (f", in {unit}" if unit else "")
        default = "it must be given" if setting.default is None else setting.default.replace("|", "\\|")
        yield f"| `{setting.name}` | {kind_of} | {default} | {setting.meaning.replace('|', chr(92) + '|')} |\n"


WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false", timedelta: "duration", Size: "size"}


def type_of(hint: Any) -> str:
    """A type in words; whether None will do is said by the default."""
    if hint in WORDS:
        return WORDS[hint]
    members = [member for member in get_args(hint) if member not in {NoneType, Ellipsis}]
    if get_origin(hint) is Literal:
        return " or ".join(f'"{member}"' for member in members)
    if get_origin(hint) is tuple:
        count = "list" if Ellipsis in get_args(hint) else f"{len(members)}"
        return f"{count} of {type_of(members[0])}s" if count == "list" else f"{count} {type_of(members[0])}s"
    [member] = members
    return type_of(member)


def leading(setting: Setting) -> Any:
    """The value that the text of a default begins with, read as people's own."""
    text, value = setting.default or "", setting.value
    if isinstance(value, timedelta):
        return duration(re.match(r"[\d.]+ \w+", text)[0])  # type: ignore[index]
    if Size in {setting.hint, *get_args(setting.hint)}:
        return size(re.match(r"[\d.]+ \w+", text)[0])  # type: ignore[index]
    if isinstance(value, bool):
        return {"True": True, "False": False}[re.match(r"\w+", text)[0]]  # type: ignore[index]
    if isinstance(value, int):
        return int(re.match(r"[\d,]*\d", text)[0].replace(",", ""))  # type: ignore[index]
    if isinstance(value, float):
        return float(re.match(r"[\d.]*\d", text)[0])  # type: ignore[index]
    return re.match(r'"?([^",]*)', text)[1]  # type: ignore[index]


@pytest.mark.parametrize(("kind", "name", "cls"), CLASSES, ids=lambda each: str(getattr(each, "__name__", each)))
def test_defaults_are_those_of_the_docstrings(kind: Kind[Any], name: str, cls: type) -> None:
    for setting in settings(cls):
        value, text = setting.value, setting.default
        if value is attrs.NOTHING:
            assert text is None, f"{setting.name} has no default, and its docstring says {text!r}"
            continue
        assert text is not None, f"{cls.__name__}.{setting.name} has a default, of which the docstring says nothing"
        if value is None:
            assert re.match(r"None\b|none\b|the URL's|what ", text), setting
        elif isinstance(value, tuple):
            words = [each.strip() for each in re.split(r",| and ", text)]
            fits = [duration(word) for word in words] if isinstance(next(iter(value), None), timedelta) else words
            assert (
                fits in (list(value), list(map(str, value)))
                or text.startswith(f"{len(value)} from ")
                or (value == () and text == "none")
            ), setting
        else:
            assert leading(setting) == value, setting


def written(setting: Setting) -> str:
    """A default as one writes it into the environment."""
    text, value = setting.default or "", setting.value
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) if " from " in text else text.replace(" and ", ", ")
    text = re.split(r";|, (?!\d)", text)[0].strip('"')
    return text.replace(",", "") if isinstance(value, int) else text


@pytest.mark.parametrize(
    ("section", "name", "cls"),
    [(section, name, cls) for kind, name, cls in CLASSES for section in SECTIONS[kind]],
    ids=lambda each: str(getattr(each, "__name__", each)),
)
def test_each_can_be_set_in_the_environment(section: str, name: str, cls: type) -> None:
    """Written there as the page writes the default, they are the defaults."""
    urls = {"s3": "s3://bucket", "sqlite": "sqlite:///jobs.db"}
    environ = {"REPID_MESSAGE_BROKER__BACKEND": "memory", f"REPID_{section.upper()}__BACKEND": name}
    wanted = {}
    if name in urls:
        wanted["url"] = environ[f"REPID_{section.upper()}__URL"] = urls[name]
    for setting in settings(cls):
        if setting.value not in (None, attrs.NOTHING, ()) and setting.name not in wanted:
            environ[f"REPID_{section.upper()}__{setting.name.upper()}"] = written(setting)
    assert load({}, environ).sections[section].settings == cls(**wanted)


def test_file_url_and_environment_say_the_same() -> None:
    from repid_redis import RedisMessageBrokerSettings

    text = PAGE.read_text("utf-8")
    [toml, shell] = re.findall(r"```(?:toml|sh)\n(.*?)```", text, re.DOTALL)
    [url] = re.findall(r"is the same as `(.*?)`", text)
    environ = dict(line.split("=", 1) for line in shell.splitlines())
    ways = (load(tomllib.loads(toml), {}), load({}, environ), from_urls(message_broker=url))
    first, *others = (way.sections["message_broker"].settings for way in ways)
    assert first == RedisMessageBrokerSettings("redis://localhost/0", lease=timedelta(seconds=30), max_payload=8 << 20)
    assert all(other == first for other in others)


def test_the_page_is_what_the_classes_say() -> None:
    text = PAGE.read_text("utf-8")
    assert text[text.index(BEGIN) :] == rendered(), f"run python {Path(__file__).relative_to(ROOT)}"


if __name__ == "__main__":
    before = PAGE.read_text("utf-8").partition(BEGIN)[0]
    PAGE.write_text(before + rendered(), "utf-8")
