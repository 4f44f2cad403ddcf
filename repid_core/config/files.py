"""Where configuration is found, and what variables stand for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from repid_core.errors import ConfigError
from repid_core.plugins import Kind

#: The sections that choose one backend each.
SECTIONS: Final[Mapping[str, Kind[Any]]] = {
    "message_broker": Kind.MESSAGE_BROKER,
    "args_bucket_broker": Kind.BUCKET_BROKER,
    "results_bucket_broker": Kind.BUCKET_BROKER,
    "serializer": Kind.SERIALIZER,
    "converter": Kind.CONVERTER,
}
TOP: Final = (*SECTIONS, "middlewares", "args_bucket_threshold")
PREFIX: Final = "REPID_"
NO_SETTINGS: Final = {"REPID_CONFIG", "REPID_DISABLE_PLUGINS"}
_FILE: Final = "REPID_CONFIG"
_NAMES: Final = ("repid.toml", "pyproject.toml")


def found(environ: Mapping[str, str]) -> tuple[Path | None, str, Mapping[str, Any]]:
    """The file that the environment names, or the nearest; or nothing, if the environment has settings."""
    if named := environ.get(_FILE):
        words = f"{named}, named by {_FILE},"
        return Path(named), words.rstrip(","), read(Path(named), words)
    looked = []
    for folder in _upwards(Path.cwd()):
        looked.append(str(folder))
        for name in _NAMES:
            if _there(file := folder / name) and (name != _NAMES[1] or _tool(_parsed(file)) is not None):
                return file, str(file), read(file)
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


def read(file: Path, words: str = "") -> Mapping[str, Any]:
    """The table in a file, which errors call by `words`."""
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


def _is_setting(variable: str) -> bool:
    name = variable.removeprefix(PREFIX).lower()
    return variable.startswith(PREFIX) and ("__" in name or name in TOP or meant(name) is not None)


def meant(name: str) -> str | None:
    """The variable that somebody who wrote this one, in lower case, may have had in mind; many are not for us."""
    for section in SECTIONS:
        if name.startswith(f"{section}_"):
            return f"{PREFIX}{section.upper()}__{name.removeprefix(f'{section}_').upper()}"
    close = get_close_matches(name, TOP, 1, 0.85)
    return f"{PREFIX}{close[0].upper()}" if close else None
