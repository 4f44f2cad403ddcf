"""Both serializers keep what serializers promise."""

from __future__ import annotations

import pytest

from repid_core.abc import Serializer
from repid_core.testing.conformance.serializer import SerializerConformance
from repid_msgspec import MsgpackSerializer, MsgspecJsonSerializer


class TestMsgpack(SerializerConformance):
    @pytest.fixture
    def serializer(self) -> Serializer:
        return MsgpackSerializer()


class TestMsgspecJson(SerializerConformance):
    @pytest.fixture
    def serializer(self) -> Serializer:
        return MsgspecJsonSerializer()
