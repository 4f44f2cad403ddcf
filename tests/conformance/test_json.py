"""The JSON serializer keeps what serializers promise."""

from __future__ import annotations

import pytest

from repid_core.abc import Serializer
from repid_core.json_serializer import JsonSerializer
from repid_core.testing.conformance.serializer import SerializerConformance


class TestJson(SerializerConformance):
    @pytest.fixture
    def serializer(self) -> Serializer:
        return JsonSerializer()
