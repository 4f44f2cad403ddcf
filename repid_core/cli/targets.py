"""What "module:attribute" on the command line means: an application's connection, its routers, its worker."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from repid_core.app import Repid
from repid_core.cli.group import USAGE, Failure
from repid_core.connection import Connection
from repid_core.errors import RepidError
from repid_core.router import Router

T = TypeVar("T")


def load(target: str, kinds: tuple[type[T], ...], what: str) -> T:
    """Import what `target` names. A function that is called without arguments may give it.

    Args:
        target: "module:attribute"; the current directory is searched for the module first.
        kinds: What it may be an instance of.
        what: The same in words.

    Raises:
        Failure: It cannot be imported, or is something else; says which other attributes would do.
    """
    module_name, _, path = target.partition(":")
    if not (module_name and path):
        raise Failure(f"{target!r} names no {what}: write module:attribute, such as app.tasks:router", USAGE)
    module = _module(module_name, target)
    found: Any = module
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise Failure(f"{target!r} names no {what}: {_without(module, module_name, name, kinds)}", USAGE) from None
    if isinstance(found, kinds):
        return found
    if callable(found) and not isinstance(found, type):
        found = _made(found, target, what)
        if isinstance(found, kinds):
            return found
        raise Failure(f"{target!r} is a function that gives {_a(found)}, and no {what}", USAGE)
    raise Failure(f"{target!r} is {_a(found)}, and no {what}", USAGE)


def connection_of(target: str) -> Connection:
    """The connection behind `--app`: of a `Connection` or a `Repid`, or what a function gives."""
    found: Any = load(target, (Connection, Repid), "connection")
    connection: Connection = found.connection if isinstance(found, Repid) else found
    return connection


def connection(app: str | None, config: str | Path | None) -> Connection:
    """The connection that a command uses: the application's, or one by configuration."""
    if app is not None and config is not None:
        raise Failure("--app and --config both say which connection to use: give one", USAGE)
    return connection_of(app) if app is not None else Connection.from_config(config)


def routers(targets: Sequence[str]) -> list[Router]:
    """The routers and workers behind these names; a worker is a router too."""
    return [load(target, (Router,), "router or worker") for target in targets]


def _module(name: str, target: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except RepidError as error:
        raise Failure(f"{target!r}: importing {name} failed: {error}", USAGE) from error
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            text = f"{target!r}: there is no module {error.name!r} in {here}, nor is one installed"
        else:
            text = f"{target!r}: importing {name} failed: {type(error).__name__}: {error}; --debug shows where"
        raise Failure(text, USAGE) from error


def _made(function: Callable[[], Any], target: str, what: str) -> Any:
    try:
        return function()
    except RepidError:
        raise
    except Exception as error:
        raise Failure(
            f"{target!r}: making the {what} failed: {type(error).__name__}: {error}; --debug shows where", USAGE
        ) from error


def _without(module: Any, module_name: str, name: str, kinds: tuple[type, ...]) -> str:
    fitting = [f"{module_name}:{key}" for key, value in vars(module).items() if isinstance(value, kinds)]
    close = get_close_matches(name, [key for key in vars(module) if not key.startswith("_")], 1)
    hint = f"; there is {', '.join(fitting)}" if fitting else f"; did you mean {close[0]!r}?" if close else ""
    return f"{module_name} has no {name!r}{hint}"


def _a(value: object) -> str:
    kind = type(value).__name__
    return f"{'an' if kind[0] in 'AEIOUaeiou' else 'a'} {kind}"
