"""Process-wide defaults."""

from __future__ import annotations

from repid_core.abc import Converter, Serializer


class Config:
    """What connections and actors take if nobody says otherwise. Set the attributes before the first connection is made.

    Attributes:
        SERIALIZER: A plugin's name, or a serializer.
        CONVERTER: A plugin's name, or a converter class.
    """

    SERIALIZER: str | Serializer = "json"
    CONVERTER: str | type[Converter] = "cattrs"
