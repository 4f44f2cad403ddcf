"""The converter keeps what converters promise."""

from __future__ import annotations

from typing import ClassVar

import pytest

from repid_core.abc import Converter
from repid_core.testing.conformance.converter import ConverterConformance, Order
from repid_pydantic import PydanticConverter


class TestPydantic(ConverterConformance):
    without: ClassVar = {Order: "pydantic knows no attrs classes"}
    lenient: ClassVar = "pydantic takes text for numbers unless a model or Field is strict"

    @pytest.fixture
    def converter_class(self) -> type[Converter]:
        return PydanticConverter
