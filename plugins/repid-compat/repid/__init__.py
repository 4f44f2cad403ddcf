"""repid-core and its plugins under the import name `repid`.

Everything that `repid_core` has is here. The classes of plugins are too, imported when they are first asked for; if the plugin is
not installed, that is an `ImportError` that names what to install.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import repid_core
from repid_core import *  # noqa: F403 — all of it, and whatever will be added
from repid_core import __version__

if TYPE_CHECKING:
    from repid_msgspec import MsgpackSerializer as MsgpackSerializer
    from repid_msgspec import MsgspecJsonSerializer as MsgspecJsonSerializer
    from repid_pydantic import PydanticConverter as PydanticConverter
    from repid_rabbitmq import RabbitMessageBroker as RabbitMessageBroker
    from repid_rabbitmq import RabbitMessageBrokerSettings as RabbitMessageBrokerSettings
    from repid_redis import RedisBucketBroker as RedisBucketBroker
    from repid_redis import RedisBucketBrokerSettings as RedisBucketBrokerSettings
    from repid_redis import RedisMessageBroker as RedisMessageBroker
    from repid_redis import RedisMessageBrokerSettings as RedisMessageBrokerSettings
    from repid_s3 import S3BucketBroker as S3BucketBroker
    from repid_s3 import S3BucketBrokerSettings as S3BucketBrokerSettings

__all__ = ["__version__"]
__all__ += repid_core.__all__  # of core alone: a star imports no client library

_PLUGINS = {
    "repid_msgspec": ("MsgpackSerializer", "MsgspecJsonSerializer"),
    "repid_pydantic": ("PydanticConverter",),
    "repid_rabbitmq": ("RabbitMessageBroker", "RabbitMessageBrokerSettings"),
    "repid_redis": (
        "RedisBucketBroker",
        "RedisBucketBrokerSettings",
        "RedisMessageBroker",
        "RedisMessageBrokerSettings",
    ),
    "repid_s3": ("S3BucketBroker", "S3BucketBrokerSettings"),
}
_HOMES = {name: plugin for plugin, names in _PLUGINS.items() for name in names}


def _refuse_a_mixture() -> None:
    """Two distributions have a package `repid`. Installed into one place, each overwrites files of the other."""
    try:
        other = distribution("repid")
    except PackageNotFoundError:
        return
    here = Path(__file__).resolve().parent
    if Path(str(other.locate_file("repid"))).resolve() == here:
        raise ImportError(
            f"repid {other.version} and repid-compat are both installed in {here}, and each has overwritten files of the other: "
            "pip uninstall repid repid-compat, then pip install the one that you want",
            name=__name__,
            path=__file__,
        )


_refuse_a_mixture()


def _of_plugin(name: str) -> Any:
    if (plugin := _HOMES.get(name)) is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = import_module(plugin)
    except ModuleNotFoundError as error:
        if error.name != plugin:  # it is installed, and lacks something itself
            raise
        install = plugin.replace("_", "-")
        raise ImportError(f"{name} comes with {install}, which is not installed: pip install {install}", name=plugin) from error
    return getattr(module, name)


if not TYPE_CHECKING:  # or type checkers would find any name here
    __getattr__ = _of_plugin


def __dir__() -> list[str]:
    """What can be had here: core's names, and those of the plugins that are installed."""
    return sorted({*__all__, *(name for plugin, names in _PLUGINS.items() if _is_installed(plugin) for name in names)})


def _is_installed(plugin: str) -> bool:
    try:
        return find_spec(plugin) is not None
    except ValueError:  # it is blocked in sys.modules
        return False
