"""File and environment become the parts of a connection; `docs/reference/configuration.md` has the rules.

`load` reads, merges and checks everything, and connects and builds nothing. It raises one error that lists all problems.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from repid_core.config.files import SECTIONS, found, read
from repid_core.config.parts import Configuration, Section
from repid_core.config.reader import Reader
from repid_core.errors import ConfigError
from repid_core.settings import Given, masked

__all__ = ["SECTIONS", "Configuration", "Section", "from_urls", "load"]


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
        words, table = str(file), read(file)
    else:
        file, words, table = found(environ)
    reader = Reader(words, environ)
    reader.override(table)
    return reader.finish(file, only)


def from_urls(args_bucket_threshold: int | str = 0, **urls: str | None) -> Configuration:
    """The configuration that URLs stand for, by section. The environment has no part in it.

    Raises:
        SettingsError: They are not valid; its `problems` list everything that is wrong.
    """
    reader = Reader("URLs", {})
    for path, url in urls.items():
        if url is not None:
            origin = f"URL {masked(str(url)).partition('?')[0]}"
            if "://" in str(url):
                reader.section(path, {"url": url}, origin)
            else:
                reader.report(path, origin, "it has no ://, so it is no URL: write for example memory://")
    reader.top["args_bucket_threshold"] = Given(args_bucket_threshold, "")
    return reader.finish(None, None)
