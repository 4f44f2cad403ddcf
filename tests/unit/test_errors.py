"""The error tree: messages, places, pickles."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from repid_core import errors
from repid_core.data import Capability, Receipt, ResultBucket
from repid_core.errors import (
    DuplicateJobError,
    EnqueueError,
    EnqueueManyError,
    JobFailedError,
    PayloadTooLargeError,
    RepidError,
    ResultTimeoutError,
    SettingsError,
    UnsupportedFeatureError,
    UsageError,
)

CLASSES = {name: kind for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, RepidError)}
FAILED = ResultBucket(
    data=None,
    success=False,
    started_when=1,
    finished_when=2,
    exception="ValueError",
    traceback="Traceback …",
    timestamp=datetime(2030, 1, 1, tzinfo=UTC),
    expires_at=None,
)
SAMPLES = [
    SettingsError(["url: give text", "lease: give a duration"]),
    UnsupportedFeatureError(Capability.CANCEL, object()),
    EnqueueError("refused", maybe_enqueued=True),
    DuplicateJobError("order-1", "running"),
    EnqueueManyError([Receipt("a"), DuplicateJobError("b", "ready")]),
    PayloadTooLargeError(2_000_000, 1_000_000),
    errors.ConversionError(["user_id: give a number", "name: is missing"]),
    JobFailedError(FAILED),
    ResultTimeoutError(),
    errors.InvalidJobError("retries=-1: give a whole number"),
]
CUSTOM = {type(sample) for sample in SAMPLES if type(sample).__init__ is not RepidError.__init__}


def pairs(tree: str) -> Iterator[tuple[str, str]]:
    """(class, parent) as the tree is drawn; `(Name)` behind a class is another base of it, alone it is drawn elsewhere too."""
    above: dict[int, str] = {}
    for line in tree.splitlines():
        if not (drawn := re.fullmatch(r" {4}((?:[│├└][ ─]{3}| {4})*)(\w.*)", line)):
            continue
        depth = len(drawn[1]) // 4
        parent, _, children = drawn[2].partition(" ── ")
        for found in re.finditer(r"(\w+)(?: \((\w+)\))?|\((\w+)\)", parent):
            above[depth] = found[1] or found[3]
            if depth:
                yield above[depth], above[depth - 1]
            if found[2]:
                yield found[1], found[2]
        yield from ((child, above[depth]) for child in re.findall(r"\w+", children))


def test_the_tree_of_the_documentation_is_that_of_the_classes() -> None:
    drawn = set(pairs(errors.__doc__ or ""))
    real = {(name, base.__name__) for name, kind in CLASSES.items() for base in kind.__bases__ if kind is not RepidError}
    assert drawn == real


@pytest.mark.parametrize("name", [name for name, kind in CLASSES.items() if kind not in CUSTOM])
def test_the_docstring_is_the_message(name: str) -> None:
    kind = CLASSES[name]
    assert str(kind()) == inspect.cleandoc(kind.__doc__ or "")
    assert str(kind("another")) == "another"


def test_every_constructor_that_differs_has_a_sample_here() -> None:
    differing = {kind for kind in CLASSES.values() if kind.__init__ is not RepidError.__init__}
    assert differing == CUSTOM


def test_errors_can_be_caught_as_what_they_also_are() -> None:
    assert issubclass(errors.InvalidJobError, ValueError)
    assert issubclass(errors.InvalidActorError, TypeError)
    assert issubclass(ResultTimeoutError, TimeoutError)
    assert issubclass(PayloadTooLargeError, EnqueueError)
    assert issubclass(PayloadTooLargeError, errors.BucketBrokerError)
    assert issubclass(errors.AlreadySettledError, UsageError)
    assert not issubclass(errors.ActorEnded, Exception)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (SAMPLES[0], "invalid settings:\n  url: give text\n  lease: give a duration"),
        (SAMPLES[1], "object does not support CANCEL: choose a broker that declares it"),
        (SAMPLES[3], "a job with id 'order-1' is running already: wait for it, cancel it, choose another id, "),
        (SAMPLES[4], "1 of 2 jobs were not enqueued; the first: a job with id 'b' is ready already"),
        (SAMPLES[5], "the payload has 2,000,000 bytes and the limit is 1,000,000: pass large arguments through an args bucket"),
        (SAMPLES[6], "user_id: give a number; name: is missing"),
        (SAMPLES[7], "the job failed: ValueError\nTraceback …"),
    ],
)
def test_messages_name_the_facts(error: RepidError, message: str) -> None:
    assert str(error).startswith(message)


def by_value(error: BaseException) -> dict[str, str]:
    return {name: repr(value) for name, value in vars(error).items() if name != "backend"}


@pytest.mark.parametrize("error", SAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_crosses_processes_whole(error: RepidError) -> None:
    error.add_note("seen in a test")
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):  # noqa: S301 — our own bytes
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert again.args == error.args
        assert by_value(again) == by_value(error)


@pytest.mark.parametrize("name", [name for name, kind in CLASSES.items() if kind not in CUSTOM])
def test_a_plain_error_crosses_processes_too(name: str) -> None:
    again = pickle.loads(pickle.dumps(CLASSES[name]("why")))  # noqa: S301 — our own bytes
    assert (type(again), str(again)) == (CLASSES[name], "why")
