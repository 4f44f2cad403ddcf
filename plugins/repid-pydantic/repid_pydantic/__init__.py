"""A converter on pydantic for repid-core.

`pip install repid-pydantic`, and choose `pydantic` by name, or give the class to a connection, a router or an actor::

    from repid_pydantic import PydanticConverter

    @router.actor(converter=PydanticConverter)
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from repid_core import Backend, Converter, hookimpl

if TYPE_CHECKING:
    from repid_pydantic.converter import PydanticConverter

__all__ = ["PydanticConverter"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # pydantic waits until it is wanted
        from repid_pydantic import converter  # noqa: PLC0415 — as above

        return getattr(converter, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@hookimpl
def repid_register_converters() -> Iterable[Backend[type[Converter]]]:
    """The one converter of this plugin."""
    return [
        Backend(
            "pydantic",
            factory="repid_pydantic.converter:converter_class",
            summary="Validation by pydantic: models, Field constraints and aliases, results filtered by the return type.",
        ),
    ]
