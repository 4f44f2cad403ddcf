"""The cattrs converter keeps what converters promise."""

from __future__ import annotations

import pytest

from repid_core.abc import Converter
from repid_core.cattrs_converter import CattrsConverter
from repid_core.testing.conformance.converter import ConverterConformance


class TestCattrs(ConverterConformance):
    @pytest.fixture
    def converter_class(self) -> type[Converter]:
        return CattrsConverter
