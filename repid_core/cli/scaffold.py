"""Writes the package of a new plugin from the templates beside this module.

A template is the file of a plugin called `repid-acme` that brings `acme`; both names are replaced wherever they stand. A line
`%% kind …` begins what is for these kinds alone, up to the next such line; `%% end` ends it.
"""

from __future__ import annotations

import json
import keyword
import re
import shutil
import tempfile
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from attrs import frozen

from repid_core import __version__

KINDS: Final = ("message-broker", "bucket-broker", "serializer", "converter", "middleware")
_TEMPLATES: Final = Path(__file__).parent / "templates"
_SUFFIX: Final = ".tmpl"
LICENSES: Final = tuple(sorted(path.name.removesuffix(_SUFFIX) for path in (_TEMPLATES / "licenses").iterdir()))
_HELPERS: Final = {"server": "message-broker", "fitting": "converter"}  # modules that are named after no kind


class ScaffoldError(Exception):
    """The package cannot be written; the text says why, and what to do."""


@frozen
class Names:
    """What a plugin is called.

    Attributes:
        distribution: What is installed, for example "repid-my-store".
        package: What is imported: "repid_my_store".
        backend: What users choose: "my-store".
        prefix: How its classes begin: "MyStore".
    """

    distribution: str
    package: str
    backend: str
    prefix: str

    @classmethod
    def of(cls, name: str) -> Names:
        """Derive all from the distribution's name.

        Raises:
            ScaffoldError: It is not a name for a plugin, or it is taken.
        """
        backend = name.removeprefix("repid-")
        if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", backend) or not re.fullmatch(r"[a-z0-9-]{1,40}", name):
            better = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
            hint = f", such as {better!r}" if better != name and re.fullmatch(r"[a-z][a-z0-9-]{,39}", better) else ""
            raise ScaffoldError(
                f"{name!r} is no name for a plugin: use up to 40 lower-case letters and digits, joined by '-', "
                f"with a letter at the start and behind 'repid-'{hint}",
            )
        package = name.replace("-", "_")
        if keyword.iskeyword(package) or find_spec(package) is not None:
            raise ScaffoldError(f"{name!r} is taken: there is a module {package!r} in this environment; choose another name")
        return cls(name, package, backend, "".join(part.capitalize() for part in backend.split("-")))


def render(name: str, kinds: Collection[str], license_: str = "MIT", author: str | None = None) -> dict[str, str]:
    """What the package consists of: text by path.

    Args:
        name: The distribution's name; "repid-something" by convention.
        kinds: Some of `KINDS`.
        license_: One of `LICENSES`.
        author: Who holds the copyright; None for "The … authors".

    Raises:
        ScaffoldError: The name, a kind or the licence is not valid.
    """
    names = Names.of(name)
    _check_choice("kind", kinds, KINDS)
    _check_choice("licence", [license_], LICENSES)
    holder = author or f"The {name} authors"
    words = {
        "repid-acme": names.distribution,
        "repid_acme": names.package,
        "Acme": names.prefix,
        "acme": names.backend,
        "<license>": license_,
        "<author>": json.dumps(holder, ensure_ascii=False),
        "<core>": ".".join(__version__.split(".")[:2]),
    }
    root = _TEMPLATES / "plugin"
    files = {}
    for template in sorted(path for path in root.rglob(f"*{_SUFFIX}") if _wanted(path, kinds)):
        path = template.relative_to(root).as_posix().removesuffix(_SUFFIX)
        files[_renamed(path, words)] = _renamed(_chosen(template.read_text("utf-8"), kinds), words)
    text = (_TEMPLATES / "licenses" / (license_ + _SUFFIX)).read_text("utf-8")
    files["LICENSE"] = _renamed(text, {"<year>": str(datetime.now(UTC).year), "<holder>": holder})
    return files


def write(files: Mapping[str, str], target: Path) -> None:
    """Write all files into a folder that is made for them, or nothing.

    Raises:
        ScaffoldError: The folder is there, or cannot be made.
    """
    if target.exists() or target.is_symlink():
        raise ScaffoldError(f"{target} is there already: choose another name, or another place with --directory")
    if not target.parent.is_dir():
        raise ScaffoldError(f"{target.parent} is no folder: make it first, or choose another place with --directory")
    try:
        half = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise ScaffoldError(f"{target} cannot be made: {error}") from error
    try:
        for name, text in files.items():
            file = half / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, "utf-8", newline="\n")
        half.chmod(0o755)  # a temporary folder is its owner's alone
        half.rename(target)  # all at once
    except OSError as error:
        raise ScaffoldError(f"{target} cannot be written: {error}") from error
    finally:
        shutil.rmtree(half, ignore_errors=True)


def _check_choice(what: str, chosen: Collection[str], known: Collection[str]) -> None:
    if not chosen:
        raise ScaffoldError(f"no {what} is given: choose of {', '.join(known)}")
    for choice in chosen:
        if choice not in known:
            raise ScaffoldError(f"{choice!r} is no {what}: choose of {', '.join(known)}")


def _wanted(template: Path, kinds: Collection[str]) -> bool:
    stem = template.name.partition(".")[0].removeprefix("test_")
    kind = _HELPERS.get(stem, stem.replace("_", "-"))
    return kind not in KINDS or kind in kinds


def _chosen(text: str, kinds: Collection[str]) -> str:
    lines, wanted = [], True
    for line in text.splitlines(keepends=True):
        if line.startswith("%% "):
            wanted = not {"end", *kinds}.isdisjoint(line.split()[1:])
        elif wanted:
            lines.append(line)
    return "".join(lines)


def _renamed(text: str, words: Mapping[str, str]) -> str:
    return re.sub("|".join(map(re.escape, words)), lambda match: words[match[0]], text)
