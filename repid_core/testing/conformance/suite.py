"""What every conformance suite is built of: promises, the tests that check them, and the rule that none is dropped silently."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NoReturn, TypeVar

import pytest
from attrs import frozen

from repid_core.data import Capability

_F = TypeVar("_F", bound=Callable[..., Any])

NOT_DECLARED = "not declared: "  # how the reason of a skip begins, for the report
DEVIATES = "deviates: "


@frozen
class Promise:
    """One sentence of the contract.

    Attributes:
        number: Its number there, for example "M9".
        text: What it says.
        needs: Capabilities that the backend must declare, and hooks (by name) that the suite's user must have written,
            for the promise to apply.
    """

    number: str
    text: str
    needs: tuple[Capability | str, ...] = ()


class PromiseBroken(AssertionError):  # noqa: N818 — it reads as the finding that it is
    """A backend does not keep a promise; names its number and text, and what was seen instead."""

    def __init__(self, promise: Promise, seen: str) -> None:
        self.promise, self.seen = promise, seen
        super().__init__(f"{promise.number} is broken: {promise.text}\nSeen: {seen}")


def check(ok: object, seen: str) -> None:
    """Fail the running test with what was `seen`, unless `ok`. Unlike `assert`, it works under `python -O`."""
    if not ok:
        raise AssertionError(seen)


def same(seen: object, wanted: object, what: str) -> None:
    """Fail the running test unless `seen` equals `wanted`; `what` says what they are."""
    if seen != wanted:
        if isinstance(seen, dict) and isinstance(wanted, dict):  # only what differs
            missing = object()
            differ = [key for key in {**seen, **wanted} if seen.get(key, missing) != wanted.get(key, missing)]
            seen, wanted = ({key: value[key] for key in differ if key in value} for value in (seen, wanted))
        raise AssertionError(f"{what}: {_short(seen)}, instead of {_short(wanted)}")


def _short(value: object, length: int = 400) -> str:
    text = repr(value)
    return text if len(text) <= length else f"{text[:length]}… ({len(text)} characters)"


def promise(number: str, text: str, *needs: Capability | str) -> Callable[[_F], _F]:
    """Mark a method of a suite as the test of a promise, which becomes its docstring.

    At run time the test is skipped, as "not declared", if the backend lacks one of `needs` (see `ConformanceSuite.lacks`);
    and whatever exception ends it becomes a `PromiseBroken`. Coroutine functions are marked for pytest-asyncio, so that they
    run in its strict mode too.
    """
    kept = Promise(number, text, needs)

    def decorate(test: _F) -> _F:
        if inspect.iscoroutinefunction(test):

            @functools.wraps(test)
            async def run(self: ConformanceSuite, *args: Any, **kwargs: Any) -> None:
                self.gate(kept)
                limit = asyncio.timeout(self.time_limit)
                try:
                    async with limit:
                        await test(self, *args, **kwargs)
                except Exception as error:
                    late = limit.expired() and isinstance(error, TimeoutError)
                    seen = f"the test did not end within {self.time_limit} s" if late else _seen(error)
                    raise PromiseBroken(kept, seen) from error

            run = pytest.mark.asyncio(loop_scope="function")(run)
        else:

            @functools.wraps(test)
            def run(self: ConformanceSuite, *args: Any, **kwargs: Any) -> None:
                self.gate(kept)
                try:
                    test(self, *args, **kwargs)
                except Exception as error:
                    raise PromiseBroken(kept, _seen(error)) from error

        run.__doc__ = f"{number}: {text}"
        run.__promise__ = kept  # type: ignore[attr-defined]
        return run  # type: ignore[return-value]

    return decorate


def _seen(error: Exception) -> str:
    return str(error) if isinstance(error, AssertionError) and error.args else f"{type(error).__name__}: {error}"


class ConformanceSuite:
    """Base of all suites. Subclass one of them as `class Test…`, and write the fixture that it asks for.

    Its tests are the contract: a subclass that overrides one, or sets it to None, must say why in `deviations`, or
    making the class raises `TypeError`. A test named there is not run, unless it is overridden; either way the report
    counts it as deviating, with the reason.

    Attributes:
        deviations: Reasons by the name of the test.
        time_limit: Seconds that one test may take before it fails; None for no limit.
        measured: What the running test measured, by name, for the report.
    """

    deviations: ClassVar[Mapping[str, str]] = {}
    time_limit: float | None = 60.0

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if problems := cls.undeclared_changes():
            raise TypeError("\n".join(problems))

    @functools.cached_property
    def measured(self) -> dict[str, str]:
        return {}

    @classmethod
    def promises(cls) -> dict[str, Promise]:
        """Every standard test of this suite with its promise, whatever subclasses made of it."""
        return {name: test.__promise__ for name, test in cls._standard_tests().items()}

    @classmethod
    def _standard_tests(cls) -> dict[str, Any]:
        return {
            name: test
            for base in cls.__mro__  # later ones, nearer the root, win: they are the standard
            for name, test in vars(base).items()
            if name.startswith("test_") and hasattr(test, "__promise__")
        }

    @classmethod
    def undeclared_changes(cls) -> list[str]:
        """What is wrong with this class's changes to the standard tests, each with the remedy."""
        standard = cls._standard_tests()
        problems = [
            f"{cls.__name__} {'drops' if getattr(cls, name, None) is None else 'overrides'} {name}, the test of "
            f"{test.__promise__.number}, and does not say why: add deviations = {{{name!r}: 'the reason'}}, or leave it alone"
            for name, test in standard.items()
            if getattr(cls, name, None) is not test and name not in cls.deviations
        ]
        for name, reason in cls.deviations.items():
            if name not in standard:
                problems.append(f"{cls.__name__}.deviations names {name!r}, which is no standard test: correct or remove it")
            elif not reason.strip():
                problems.append(f"{cls.__name__}.deviations gives no reason for {name!r}: write what deviates, and why")
        return problems

    def gate(self, promise: Promise) -> None:
        """Skip the running test if the backend does not declare what it needs, or deviates from it."""
        for name, standard in self.promises().items():
            if standard is promise and name in self.deviations:
                pytest.skip(DEVIATES + self.deviations[name])
        for need in promise.needs:
            if (reason := self.lacks(need)) is not None:
                self.not_declared(reason)

    def not_declared(self, reason: str) -> NoReturn:
        """Skip the running test, because the backend does not promise what it checks."""
        pytest.skip(NOT_DECLARED + reason)

    def lacks(self, need: Capability | str) -> str | None:
        """Why the backend has no such capability or hook; None if it has. Strings are names of hooks of the suite."""
        if isinstance(need, Capability):
            return f"capability {need.name}"
        method = getattr(type(self), need)
        return f"hook {need}, which {type(self).__name__} does not write" if hasattr(method, "__hook__") else None

    def describe(self) -> dict[str, Any]:
        """What is tested, for the report: JSON-able."""
        return {}


def hook(method: _F) -> _F:
    """Mark a method that does nothing until a subclass writes it, and then unlocks the promises that need it."""
    method.__hook__ = True  # type: ignore[attr-defined]
    return method
