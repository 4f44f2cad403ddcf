"""The hooks that a plugin implements, and `Backend`, the record that they return.

A plugin is a module (or another object) behind an entry point of group `repid`. The entry point's name is the name of the
backend that it brings, so that choosing `redis` imports the plugin of that name and no other::

    # repid_redis/__init__.py, with [project.entry-points.repid] redis = "repid_redis" in pyproject.toml
    @hookimpl
    def repid_register_message_brokers() -> Iterable[Backend[MessageBroker]]:
        return [Backend("redis", "repid_redis.broker:RedisMessageBroker", settings="repid_redis.settings:RedisSettings")]

A module that brings several names has an entry point for each. Hooks are plain functions without arguments, called at most once
in a process. They only say what there is: what costs time to import stays behind a "module:attribute" until it is chosen.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, Final, Generic, TypeVar

import pluggy
from attrs import Attribute, field, frozen

from repid_core.abc import BucketBroker, Converter, MessageBroker, Serializer

T_co = TypeVar("T_co", covariant=True)

#: The group of entry points that plugins are found in.
ENTRY_POINT_GROUP: Final = "repid"

#: Marks the specification of a hook; core's own are below.
hookspec = pluggy.HookspecMarker(ENTRY_POINT_GROUP)
#: Marks a function of a plugin as its implementation of the hook of that name.
hookimpl = pluggy.HookimplMarker(ENTRY_POINT_GROUP)


def _check_name(_backend: Backend[Any], _attribute: Attribute[str], name: str) -> None:
    if not (isinstance(name, str) and re.fullmatch(r"[a-z0-9]+([._-][a-z0-9]+)*", name)):
        raise ValueError(f"{name!r} is no name for a backend: use lower-case letters and digits, joined by '-', '_' or '.'")


def _check_target(backend: Backend[Any], attribute: Attribute[Any], target: object) -> None:
    if isinstance(target, str):
        if not re.fullmatch(r"[\w.]+:[\w.]+", target):
            raise ValueError(f"{attribute.name}={target!r} of backend {backend.name!r} is not of the form 'module:attribute'")
    elif not (callable(target) or (target is None and attribute.name == "settings")):
        raise TypeError(f"{attribute.name}={target!r} of backend {backend.name!r} is neither callable nor 'module:attribute'")


def _check_strings(backend: Backend[Any], attribute: Attribute[Any], values: object) -> None:
    if not (isinstance(values, tuple) and all(isinstance(value, str) for value in values)):
        raise TypeError(f"{attribute.name}={values!r} of backend {backend.name!r} is not a tuple of strings")


@frozen
class Backend(Generic[T_co]):
    """One thing to choose by name. `T_co` is what its factory makes.

    Attributes:
        name: What users write in their configuration; also the name of the entry point.
        factory: A callable, or "module:attribute" to import when the backend is built. It is called with the settings,
            or without arguments if there is no settings class. For converters it gives the class, as there is one
            instance for each actor; a converter class itself will do.
        settings: The attrs class of the settings, with a docstring for its fields, or "module:attribute"; None if there
            is nothing to set.
        url_schemes: Brokers: what the URLs that choose this backend begin with, without "://".
        content_types: Serializers: the content types that it reads, its own among them.
        summary: One line for people who choose a backend.
        api: The version of this interface that the backend was written for.

    Raises:
        ValueError: A name or "module:attribute" is malformed.
        TypeError: A field has the wrong type.
    """

    name: str = field(validator=_check_name)
    factory: Callable[..., T_co] | str = field(validator=_check_target)
    settings: type | str | None = field(default=None, validator=_check_target)
    url_schemes: tuple[str, ...] = field(default=(), validator=_check_strings)
    content_types: tuple[str, ...] = field(default=(), validator=_check_strings)
    summary: str = ""
    api: int = 1


# All of them but the last are called when one of the plugin's names is chosen, or all plugins are looked through, whatever comes
# first. Every record's name has an entry point of its own. To give none is the same as not to write the hook.


@hookspec
def repid_register_message_brokers() -> Iterable[Backend[MessageBroker]]:  # type: ignore[empty-body]
    """Called when the plugin is loaded: the message brokers that it brings; none if it brings none."""


@hookspec
def repid_register_bucket_brokers() -> Iterable[Backend[BucketBroker]]:  # type: ignore[empty-body]
    """Called when the plugin is loaded: the stores for arguments and results that it brings; none if it brings none."""


@hookspec
def repid_register_serializers() -> Iterable[Backend[Serializer]]:  # type: ignore[empty-body]
    """Called when the plugin is loaded: the serializers that it brings; none if it brings none.

    A worker that gets a content type that its own serializer does not write loads all plugins to find one that claims it.
    """


@hookspec
def repid_register_converters() -> Iterable[Backend[type[Converter]]]:  # type: ignore[empty-body]
    """Called when the plugin is loaded: the converters that it brings, whose factories give classes; none if it brings none."""


@hookspec
def repid_register_middlewares() -> Iterable[Backend[Any]]:  # type: ignore[empty-body]
    """Called when the plugin is loaded: whatever `connection.middleware.add` takes that it brings; none if it brings none.

    A connection has the middlewares that it names: to install a plugin adds none.
    """


@hookspec
def repid_register_commands() -> Iterable[Any]:  # type: ignore[empty-body]
    """Called when the `repid` command starts: a `click.Command` for each subcommand that the plugin adds; none if it adds none.

    Import click inside the hook: the applications that use the plugin need not have it installed.
    """
